"""How good a model is at the tasks it was made for: `refembed evaluate`. Definitions are in spec/evaluation.md.

sets        evaluation sets from folders of plain files
vectors     texts to vectors: prompt, context, each distinct text once
metrics     vectors to scores
tasks       the three together
report      scores to text and JSON
"""
