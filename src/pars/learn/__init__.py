"""The learn lane: prompts with answer lengths to pairs, to a trained ranker, to its evaluation."""
