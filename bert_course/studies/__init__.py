"""The studies behind tables in the lessons: many runs, each stored as soon as it is done.

A stopped study goes on where it stopped; one of other data or settings is not mixed in.
"""

from .benchmarks import study_benchmarks
from .entities import marked, study_entities
from .features import PARTS, only, study_features
from .nsp import study_nsp
from .pairs import across, by_kind, segments, study_paraphrases
from .passages import answer_scores, excerpts, other_questions, study_passages
from .plateau import study_plateau
from .recall import study_recall
from .recipes import study_recipes
from .reviews import study_reviews
from .siblings import study_siblings
from .word2vec import study_word2vec
