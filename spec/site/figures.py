"""Which figures a chapter has.

Each is drawn from numbers that are computed when its function is called, or that a command of this repository wrote:
by the reference, from golden vectors, measured.json (measure.py), forms.md, the logs. The first paragraph of a
function's docstring says what one sees, as a caption and for who cannot see it.
"""

from collections.abc import Callable, Mapping

import model_figures as model
import training_figures as training
import vector_figures as vectors
from matplotlib.figure import Figure

CHAPTERS: Mapping[str, list[Callable[[], Figure]]] = {
    "01-tokens-and-prompts": [model.fig_tokens],
    "02-embedding": [model.fig_factor],
    "03-norms": [model.fig_gelu],
    "04-rotary-positions": [model.fig_rotary],
    "05-attention-and-windows": [model.fig_windows, model.fig_attention, model.fig_reaches],
    "06-gated-mlp": [model.fig_norms, model.fig_updates],
    "07-pooling-and-dense-head": [model.fig_pooled],
    "08-matryoshka": [vectors.fig_matryoshka],
    "09-quantised-weights": [vectors.fig_rounding, vectors.fig_quantisation],
    "10-losses": [training.fig_hardness, training.fig_spread],
    "11-gradients": [training.fig_steps],
    "12-ul2": [training.fig_spans],
    "13-adaptation": [training.fig_copies],
    "14-recipe": [training.fig_curves],
    "kernels": [training.fig_ladder],
}
