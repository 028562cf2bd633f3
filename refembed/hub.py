"""From a hub id to a folder: the Hugging Face hub's own client, its cache, its offline flag and its token."""

import re
from pathlib import Path

from .checkpoint import FILES
from .errors import RefembedError

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def find_folder(model: str | Path, revision: str | None = None) -> Path:
    """The folder of a model given as a folder or as a hub id.

    A folder that exists is taken first. Raises RefembedError where there is neither.
    """
    folder = Path(model).expanduser()
    if isinstance(model, Path) or folder.is_dir():
        return folder
    if not HUB_ID.fullmatch(model) or model.startswith((".", "~")):
        raise RefembedError("hub-name", f"{model!r} is neither a folder here nor a hub id (google/embeddinggemma-300m)")
    return download(model, revision)


def download(model: str, revision: str | None) -> Path:
    """Bring a hub model's files into the hub client's own cache, or find them there."""
    import huggingface_hub
    from huggingface_hub import errors

    page = f"{huggingface_hub.constants.ENDPOINT}/{model}"
    try:
        return Path(huggingface_hub.snapshot_download(model, revision=revision, allow_patterns=list(FILES)))
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
    except errors.HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else "no answer"
        if status in (401, 403):
            raise RefembedError(
                "hub-access", f"the hub refuses {model} ({status}): accept the licence at {page}, and check your token"
            ) from error
        raise RefembedError("hub-unreachable", f"the hub answered {status} for {model}; try again later") from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        if huggingface_hub.constants.HF_HUB_OFFLINE:
            raise RefembedError(
                "hub-offline", f"{model} is not in the cache and HF_HUB_OFFLINE is set; unset it, or name a folder"
            ) from error
        raise RefembedError(
            "hub-unreachable", f"{model} is not in the cache, and the hub cannot be reached: {page}"
        ) from error
    except (OSError, errors.HFValidationError) as error:
        raise RefembedError(
            "hub-unreachable", f"{model} could not be fetched from {page}: {str(error)[:200]}"
        ) from error
