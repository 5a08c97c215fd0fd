"""What BERT is compared with: Word2Vec, recurrent networks, ELMo, GPT, and the bi-encoder, which reads two sentences apart."""


def objectives() -> dict:
    """All that `pretraining.pretrain` can train, BERT's own objectives first, by name: `objectives.Objective`."""
    from ..objectives import OBJECTIVES
    from . import elmo, gpt, rnn

    return OBJECTIVES | {objective.name: objective for objective in (gpt.CAUSAL, rnn.RECURRENT, elmo.BILM)}
