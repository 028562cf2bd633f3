"""From a hub id to a folder: the Hugging Face hub's own client, its cache, its offline flag and its token."""

import os
import re
from pathlib import Path
from typing import Any

from .checkpoint import FILES, GGUF
from .errors import RefembedError

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def find_folder(model: str | Path, revision: str | None = None, **client: Any) -> Path:
    """The folder of a model given as a folder or as a hub id; a .gguf file is itself.

    client   what the hub's client is told besides: token, cache_dir, local_files_only

    A folder that exists is taken first. Raises RefembedError where there is neither.
    """
    if is_local(model):
        return Path(os.path.expanduser(model))
    if not isinstance(model, str) or not HUB_ID.fullmatch(model) or model.startswith((".", "~")):
        raise RefembedError(
            "hub-name",
            f"{model!r} is neither a folder nor a {GGUF} file here, nor a hub id (google/embeddinggemma-300m)",
        )
    return download(model, revision, **client)


def is_local(model: str | Path) -> bool:
    """Whether this names a folder or a file here, not a hub id."""
    if not isinstance(model, str):
        return isinstance(model, Path)
    # os.path, since pathlib's own raise for an unknown user and too long a name
    return bool(model) and (model.endswith(GGUF) or os.path.isdir(os.path.expanduser(model)))


def download(model: str, revision: str | None, **client: Any) -> Path:
    """Bring a hub model's files into the hub client's own cache, or find them there."""
    try:
        from huggingface_hub import constants, errors, snapshot_download
    except ImportError as error:
        raise RefembedError(
            "hub-client-missing", f"{model} is on the hub, and its client is not installed: pip install huggingface_hub"
        ) from error
    page = f"{constants.ENDPOINT}/{model}"
    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=list(FILES), **client))
    except errors.GatedRepoError as error:
        raise RefembedError(
            "hub-access", f"{model} is behind a licence: accept it at {page}, then run 'hf auth login' or set HF_TOKEN"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise RefembedError(
            "hub-not-found",
            f"the hub shows no model {model}; check the name at {page}, or log in ('hf auth login')",
        ) from error
    except errors.RevisionNotFoundError as error:
        raise RefembedError("hub-not-found", f"{model} has no revision {revision!r}; see {page}") from error
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        answer = error if isinstance(error, errors.HfHubHTTPError) else error.__cause__  # a 403 comes as "not in cache"
        status = getattr(getattr(answer, "response", None), "status_code", None)
        if status in (401, 403):
            raise RefembedError(
                "hub-access", f"the hub refuses {model} ({status}): accept the licence at {page}, and check your token"
            ) from error
        if status:
            raise RefembedError("hub-unreachable", f"the hub answered {status} for {model}; try again later") from error
        if constants.HF_HUB_OFFLINE or client.get("local_files_only"):
            asked = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "local_files_only"
            raise RefembedError(
                "hub-offline", f"{model} is not in the cache and {asked}; leave that out, or name a folder"
            ) from error
        raise RefembedError(
            "hub-unreachable",
            f"{model} is not in the cache, and {page} cannot be reached; check name and network, or name a folder",
        ) from error
    except errors.HFValidationError as error:
        raise RefembedError("hub-name", f"{model!r} is no hub id: {str(error).splitlines()[0][:100]}") from error
    except OSError as error:
        raise RefembedError(
            "hub-unreachable", f"{model} could not be fetched from {page}: {str(error)[:200]}"
        ) from error
