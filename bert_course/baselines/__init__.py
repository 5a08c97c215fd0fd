"""What BERT is compared with: Word2Vec, recurrent networks, ELMo and GPT."""
