"""What sentence-transformers' constructor is told of a model, in refembed's words."""

from typing import Any

from ...backend import Backend, find_backends
from ...embedder import Embedder, load
from ...errors import RefembedError
from ...hub import find_folder, is_local

HUB = {"token": "token", "cache_folder": "cache_dir", "local_files_only": "local_files_only"}  # its client's words


def open_model(name: str | None, device: object = None, **options: Any) -> Embedder:
    """The model by its folder or hub id; backend and model_kwargs["dtype"] are refembed's backend and precision.

    Raises RefembedError for an option that cannot be honoured, rather than leave it out of account.
    """
    kinds = dict(options.pop("model_kwargs", None) or {})
    asked = [str(kinds.pop(key)).removeprefix("torch.") for key in ("dtype", "torch_dtype") if kinds.get(key)]
    backend, revision = (options.pop(key, None) for key in ("backend", "revision"))
    hub = {theirs: options.pop(ours) for ours, theirs in HUB.items() if ours in options}
    options.pop("trust_remote_code", None)  # it allows what is never done here
    for option, value in (kinds | options).items():
        if value:
            raise RefembedError("option-unsupported", f"{option}={value!r}: refembed has nothing like it; leave it out")
    local = name is None or is_local(name)
    model = load(
        name if local else find_folder(str(name), revision, **hub),
        backend=backend or backend_on(device),
        precision=next((precision for precision in asked if precision != "auto"), None),
        revision=revision if local else None,
    )
    model.name = model.name if local else str(name)
    check_device(model.backend, device)
    return model


def device_of(backend: Backend) -> str:
    return str(getattr(backend, "device", lambda: "cpu")())


def backend_on(device: object) -> str | None:
    """The best backend that computes there; None, which is refembed's choice, where no device is named."""
    able = [one.backend for one in find_backends() if one.backend and not one.why_not and one.backend.priority >= 0]
    return next((one.name for one in able if device and str(device).startswith(device_of(one))), None)


def check_device(backend: Backend, device: object) -> None:
    """A backend computes where it does: on the CPU, or on CUDA's current device."""
    here = device_of(backend)
    if device is not None and str(device) not in (here, f"{here}:0"):
        raise RefembedError(
            "option-unsupported",
            f"device is {str(device)!r}, and backend {backend.name} computes on {here}; refembed doctor lists backends",
        )
