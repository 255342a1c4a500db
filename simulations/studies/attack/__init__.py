"""Can it be told from a model who was trained on?"""
