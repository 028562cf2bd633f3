"""A wrong port: the mean of last_hidden_state without the dense head, as a general recipe for embeddings has it.

refembed verify --call mean_pooled:embed --suite embeddinggemma-300m    (in this folder; the model's in a variable)
"""

import os

import torch
from transformers import AutoModel, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(os.environ["EMBEDDINGGEMMA_DIR"])
model = AutoModel.from_pretrained(os.environ["EMBEDDINGGEMMA_DIR"], dtype=torch.float32)


@torch.no_grad()
def embed(texts):
    batch = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    states, mask = model(**batch).last_hidden_state, batch["attention_mask"][..., None]
    return torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1)).numpy()
