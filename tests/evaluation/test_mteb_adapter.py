"""mteb's own tasks on local data, through the adapter: they run, and agree with refembed evaluate to the last digit."""

import json
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from sets_for_tests import bitext_folder, labelled_folder, pairs_folder, retrieval_folder

import refembed
from refembed.embedder import DEFAULT_MODEL
from refembed.evaluation.sets import Row, open_folder
from refembed.evaluation.tasks import Choice, evaluate
from refembed.evaluation.vectors import TextEncoder
from refembed.prompts import prompt_of

ENCODE = {"batch_size": 32, "show_progress_bar": False}


def mteb_encoder(model: refembed.Embedder, **options: int) -> Any:
    """The adapter; mteb is imported where a test needs it, since that takes seconds of every worker."""
    from refembed.adapters.mteb_encoder import MtebEncoder

    return MtebEncoder(model, **options)


@pytest.fixture(scope="module")
def model() -> refembed.Embedder:
    return refembed.load(DEFAULT_MODEL, backend="numpy")


def judge(encoder: Any, name: str, split: Any, subset: str = "default", **attributes: object) -> dict[str, float]:
    """The scores that mteb.evaluate gives one of mteb's own tasks on the data given for its test split."""
    import mteb

    task = mteb.get_task(name)
    task.dataset, task.data_loaded, task.hf_subsets = {subset: split}, True, [subset]
    for attribute, value in attributes.items():
        setattr(task, attribute, value)
    (result,) = mteb.evaluate(encoder, task, cache=None, encode_kwargs=ENCODE, show_progress_bar=False).task_results
    return result.scores[next(iter(split))][0]


def table(rows: list[Row], **columns: str) -> Any:
    """columns: mteb's names by ours."""
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    return Dataset.from_dict({theirs: [row[ours] for row in rows] for ours, theirs in columns.items()})


def sts(encoder: Any, folder: Path, lang: str, split: str = "test", name: str = "STSBenchmark") -> dict[str, float]:
    rows = open_folder(folder, split)[0].select(split, [lang])[lang]
    scores = judge(encoder, name, {"test": table(rows, score="score", sentence1="sentence1", sentence2="sentence2")})
    return {"spearman": scores["cosine_spearman"], "pearson": scores["cosine_pearson"]}


def classification(encoder: Any, folder: Path) -> dict[str, float]:
    (found,) = open_folder(folder, "test")
    splits = {split: table(found.select(split)[""], label="label", text="text") for split in ("test", "train")}
    scores = judge(encoder, "Banking77Classification", splits)
    return {"accuracy": scores["accuracy"], "f1": scores["f1"]}


def clustering(encoder: Any, folder: Path) -> dict[str, float]:
    rows = open_folder(folder, "test")[0].select("test")[""]
    whole = {"max_fraction_of_documents_to_embed": None, "max_document_to_embed": None}
    split = {"test": table(rows, label="labels", text="sentences")}
    return {"v_measure": judge(encoder, "TwentyNewsgroupsClustering.v2", split, **whole)["v_measure"]}


def bitext(encoder: Any, folder: Path, lang: str) -> dict[str, float]:
    rows = open_folder(folder, "test")[0].select("test", [lang])[lang]
    split = {"test": table(rows, sentence="sentence1", english="sentence2")}
    scores = judge(encoder, "Tatoeba", split, f"{lang}-eng")
    return {"f1": scores["f1"], "accuracy": scores["accuracy"]}


def retrieval(encoder: Any, folder: Path, name: str, lang: str = "", collection: str = "") -> dict[str, float]:
    import mteb

    found = next(one for one in open_folder(folder, "test") if one.name.endswith(collection))
    ((_, search),) = found.searches("test", [lang] if lang else [])
    data = {
        "corpus": table(search.documents, _id="id", title="title", text="text"),
        "queries": table(search.queries, _id="id", text="text"),
        "relevant_docs": {query: dict(judged) for query, judged in search.relevant.items()},
        "top_ranked": None,
    }
    split = {mteb.get_task(name).metadata.eval_splits[0]: data}
    scores = judge(encoder, name, split)
    names = {"ndcg@10": "ndcg_at_10", "mrr@10": "mrr_at_10"} | {f"recall@{k}": f"recall_at_{k}" for k in (1, 10, 100)}
    return {ours: scores[theirs] for ours, theirs in names.items()}


def assert_same(ours: dict[str, float], theirs: dict[str, float]) -> None:
    """To the 1e-5 that mteb rounds scores of retrieval to."""
    ours = {name: score for name, score in ours.items() if name in theirs}
    assert ours == pytest.approx({name: 100 * score for name, score in theirs.items()}, abs=6e-4)
    assert len(ours) == len(theirs) > 0


CASES = [
    (pairs_folder, Choice(languages=["en"]), lambda encoder, folder: sts(encoder, folder, "en")),
    (labelled_folder, Choice(), classification),
    (labelled_folder, Choice(task="clustering"), clustering),
    (bitext_folder, Choice(languages=["deu"]), lambda encoder, folder: bitext(encoder, folder, "deu")),
    (retrieval_folder, Choice(), lambda encoder, folder: retrieval(encoder, folder, "CosQA")),
]


@pytest.mark.parametrize(("make", "choice", "theirs"), CASES, ids=["sts", "class", "cluster", "bitext", "retrieval"])
def test_evaluate_is_mteb(model, tmp_path: Path, make, choice: Choice, theirs) -> None:
    """Wrong if prompts, titles, cutting, sampling, ties or scores are not those of mteb's task, run by mteb itself."""
    (ours,) = evaluate(TextEncoder(model), make(tmp_path), choice)
    scores = theirs(mteb_encoder(model), tmp_path)
    assert_same(dict(ours.scores), scores)
    assert 0.02 < next(iter(scores.values())) < 0.98, "a set on which nothing can go wrong shows nothing"


REAL = [
    ("stsb_multi_mt", Choice(languages=["en"]), lambda encoder, folder: sts(encoder, folder, "en")),
    ("sick", Choice(split="all"), lambda encoder, folder: sts(encoder, folder, "", "all", "SICK-R")),
    ("banking77", Choice(), classification),
    ("tatoeba", Choice(languages=["fra"]), lambda encoder, folder: bitext(encoder, folder, "fra")),
    (
        "xquad_r",
        Choice(languages=["de"], collection="paragraphs"),
        lambda encoder, folder: retrieval(encoder, folder, "XQuADRetrieval", "de", "paragraphs"),
    ),
]


@pytest.mark.long
@pytest.mark.parametrize(("name", "choice", "theirs"), REAL)
def test_evaluate_is_mteb_on_real_data(data: Path, name: str, choice: Choice, theirs) -> None:
    """Wrong if real texts (long ones, equal ones, of many languages) are scored otherwise than by mteb's task."""
    model, folder = refembed.load(DEFAULT_MODEL, backend="numba"), data / "eval" / name
    (ours,) = evaluate(TextEncoder(model), folder, choice)
    assert_same(dict(ours.scores), theirs(mteb_encoder(model), folder))


@pytest.mark.long
def test_published_sts_benchmark(weights: Path, data: Path) -> None:
    """Wrong if mteb's own task, or refembed evaluate, does not give the real model its published 88.17."""
    model, folder = refembed.load(weights, backend="numba"), data / "eval" / "stsb_multi_mt"
    theirs = sts(mteb_encoder(model), folder, "en")
    (ours,) = evaluate(TextEncoder(model), folder, Choice(languages=["en"]))
    assert_same(dict(ours.scores), theirs)
    assert ours.scores["spearman"] == pytest.approx(88.17, abs=0.15)


def test_is_an_encoder(model) -> None:
    """Wrong if mteb does not take the adapter for an encoder, or keeps results of two settings under one name."""
    from mteb.models import EncoderProtocol

    encoder = mteb_encoder(model)
    assert isinstance(encoder, EncoderProtocol)
    other = mteb_encoder(model, context=1024)
    assert encoder.mteb_model_meta.name == other.mteb_model_meta.name == "refembed/default_model"
    assert encoder.mteb_model_meta.revision != other.mteb_model_meta.revision


def test_similarities(model) -> None:
    """Wrong if mteb's scores of pairs are not cosines."""
    vectors = np.random.default_rng(0).standard_normal((3, 5)).astype(np.float32)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    encoder = mteb_encoder(model)
    np.testing.assert_allclose(encoder.similarity(vectors, vectors), unit @ unit.T, atol=1e-6)
    np.testing.assert_allclose(
        encoder.similarity_pairwise(vectors, vectors[::-1]), (unit * unit[::-1]).sum(1), atol=1e-6
    )


def test_prompts_are_those_mteb_finds(model, weights: Path) -> None:
    """Wrong if mteb's wrapper for sentence-transformers puts another prompt before some type of task."""
    import mteb
    from mteb.abstasks.task_metadata import TaskType
    from mteb.models.abs_encoder import get_prompt_name
    from mteb.types import PromptType

    own = json.loads((weights / "config_sentence_transformers.json").read_text())["prompts"]
    encoder = mteb_encoder(model)
    checked = 0
    for type in get_args(TaskType):
        for kind in (None, *PromptType):
            metadata = mteb.get_task("CosQA").metadata.model_copy(update={"type": type, "name": "Some"})
            name = get_prompt_name(own, metadata, kind)
            task = encoder.task_of(type, kind.value if kind else "")
            assert (prompt_of(task, own) if task else None) == (own[name] if name else None), (type, kind)
            checked += name is not None
    assert checked > 30
