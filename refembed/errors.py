"""Every way refembed says no: one exception type, and a table of the ids it carries."""

# id -> what it means. An id is never reused; the message beside it names the thing, what was found and what to do.
ERRORS = {
    # the folder
    "folder-missing": "the model folder does not exist, or is no folder",
    "file-missing": "a file the checkpoint needs is not there",
    "file-unreadable": "a file cannot be opened or read",
    "file-too-large": "a JSON file is larger than any real one",
    "weights-pickle": "the weights are a pickle, which could run code",
    "weights-sharded": "the weights are split over several files",
    "json-invalid": "a file is not UTF-8 JSON",
    "json-not-object": "a JSON file holds something else than an object or list as needed",
    # config.json
    "config-model-type": "the model is of another kind",
    "config-causal": "the model is a causal Gemma 3, not the bidirectional encoder",
    "config-missing": "a key is missing",
    "config-type": "a value is of the wrong type",
    "config-range": "a number cannot be right",
    "config-unsupported": "a setting that EmbeddingGemma does not have",
    "config-layer-types": "layer_types does not describe the layers",
    "config-heads": "the head counts do not fit each other",
    "config-quantization": "the weights are quantised in a way that is not read",
    # the sentence-transformers files
    "modules-unsupported": "modules.json is not transformer, pooling, dense, dense, normalize",
    "pooling-unsupported": "the pooling is not one this model family has",
    "dense-unsupported": "a dense module has a bias, an activation or another shape",
    "prompts-invalid": "config_sentence_transformers.json has prompts that are not text",
    # tensors
    "dense-missing": "the dense matrices are not in the folder",
    "tensors-invalid": "not a safetensors file, or a damaged one",
    "tensors-truncated": "a safetensors file that ends too early or late",
    "tensors-too-large": "a safetensors file's header is larger than any real one",
    "tensor-missing": "a parameter is not in the file",
    "tensor-unexpected": "the file has a tensor the model does not use",
    "tensor-shape": "a parameter has another shape than the config says",
    "tensor-dtype": "a parameter is stored in a type that is not read",
    "tensor-not-finite": "a parameter or a scale holds NaN or infinity",
    "tensor-level": "a quantised parameter holds a level that its form does not have",
    "tensor-scale": "a quantised parameter holds a scale below zero",
    "tensor-too-large": "a parameter holds a number that no scale of the form can reach",
    # GGUF files
    "gguf-invalid": "not a GGUF file",
    "gguf-version": "a GGUF file of a version or byte order that is not read",
    "gguf-truncated": "a GGUF file that ends before its header or its tensors do",
    "gguf-too-large": "a GGUF file's header, or its tokenizer, is larger than any real one",
    "gguf-metadata": "a GGUF file's key or value cannot be right",
    "gguf-tensor": "a GGUF file's entry of a tensor cannot be right",
    "gguf-tokenizer": "a GGUF file's tokenizer is damaged, or not Gemma's",
    # the tokenizer
    "tokenizer-invalid": "tokenizer.json is not a tokenizer",
    "tokenizer-special": "BOS or EOS is not in the tokenizer at the id that config.json gives",
    "tokenizer-vocabulary": "the tokenizer gives ids the embedding table does not have",
    # the hub
    "hub-name": "neither a folder nor a hub id",
    "hub-access": "the licence has not been accepted, or the token is missing",
    "hub-not-found": "the hub has no such model or revision",
    "hub-offline": "not in the cache, and the hub is not to be asked",
    "hub-unreachable": "the hub cannot be reached",
    "hub-client-missing": "the hub's client is not installed",
    "hub-revision": "a revision was given for something that has none",
    # texts
    "text-type": "a text is not a string",
    "text-encoding": "a text is not valid Unicode",
    "text-token": "a text spells a token the model has no vector for",
    "text-too-long": "a text is longer than the context, and cutting was refused",
    "ids-invalid": "an array of token ids is empty, or holds no ids of this model",
    "titles-invalid": "titles are not one for each text, or not text",
    # options
    "option-task": "no task of this name",
    "option-prompt": "a prompt is not text, or titles go with a prompt that has no place for them",
    "option-dimensions": "not a number of dimensions this model can give",
    "option-quantize": "no form of vectors of this name, or not for this number of dimensions",
    "option-on-long": "on_long is neither cut nor error",
    "option-threads": "the number of threads cannot be used",
    "option-format": "the output format cannot be used here",
    "option-input": "the command needs texts, from arguments or from one file",
    "option-unsupported": "an option of another library's that refembed cannot honour",
    "option-k": "the number of results is not at least 1",
    "vectors-invalid": "similarity needs two tables of vectors of one length",
    "vectors-not-finite": "a backend gave vectors that are no embeddings",
    # backends
    "backend-unknown": "no backend of this name",
    "backend-cannot-run": "the backend cannot run here",
    "backend-broken": "the backend's entry point cannot be imported, or is no backend",
    "precision-unknown": "the backend does not compute at this precision",
    # text files and output
    "input-missing": "the input file does not exist or cannot be read",
    "input-format": "the input file's ending is not known",
    "line-encoding": "a line is not valid UTF-8",
    "line-too-long": "a line is too long to be a text",
    "line-json": "a line is not a JSON object",
    "calibration-texts": "a file to calibrate with has no usable text",
    "title-field": "no line has a title in the named field",
    "line-field": "a line has no text in the named field",
    # an index
    "index-missing": "the folder holds no index",
    "index-damaged": "a file of the index is missing, of another size, or not what was written",
    "index-newer": "the index is of a later format",
    "index-model": "the index was made with another model",
    "index-in-use": "another process is changing the index",
    "index-ids": "ids are not one text for each text, or none is in the index",
    # golden vectors
    "golden-missing": "the golden folder or its manifest is not there",
    "golden-data": "the golden folder is none that a port can be asked by",
    "golden-too-large": "a manifest is larger than any real one",
    "golden-json": "the manifest is not JSON",
    "golden-format": "the manifest is of no known format",
    "golden-newer": "the manifest is of a later format",
    "golden-manifest": "the manifest lacks a part",
    "golden-path": "the manifest names a file outside its folder",
    "golden-file-missing": "a file that the manifest names is not there",
    "golden-unlisted": "the manifest has no digest of a file it needs",
    "golden-size": "a file is shorter or longer than the manifest says",
    "golden-digest": "a file was changed",
    "golden-tensors": "a file of tensors is none",
    "golden-count": "there are more or fewer cases than the manifest says",
    "golden-empty": "there is no case",
    "golden-duplicate": "a case stands there twice",
    "golden-case": "a case lacks a part",
    "golden-values": "a case has no vectors or no tokens",
    "golden-shape": "a case's vectors have another shape",
    "golden-norm": "a golden vector is not finite or not of unit length",
    "golden-bound": "a bound is missing or not above zero",
    "golden-stages": "a stage is not stored, not listed, not finite or all zeros",
    "golden-stage-shape": "a stage has another shape than its tokens or other cases say",
    "golden-no-defects": "there is no known mistake",
    "golden-separation": "bounds, distances and separations contradict each other",
    "golden-flags": "a case's flags contradict its bounds and the defects' distances",
    "golden-leftover": "a file holds tensors that the manifest does not list",
    "golden-defects": "a defect lacks its vectors, cases or separations",
    # verify
    "verify-no-case": "no case was chosen, so nothing would be verified",
    "verify-nothing": "the port has no way to be asked for anything that was chosen",
    "verify-precision": "the suite has no bounds for this precision",
    "verify-level": "no level of this name",
    "verify-checkpoint": "the suite carries no weights, and no folder was named",
    "verify-option": "an option that this way to reach a port does not have",
    "verify-track": "the file of the last run cannot be read",
    "port-call": "the function cannot be imported",
    "port-command": "the command cannot be started",
    "port-start": "the command does not answer its first call",
    "port-dialect": "no dialect of this name",
    "port-url": "not an HTTP address",
    "port-file": "the file of vectors cannot be read",
    # serve: its start, then what it refuses
    "serve-missing": "a library that serve needs is not installed",
    "serve-address": "the address cannot be listened on",
    "serve-option": "a limit is not above 0",
    "body-missing": "a request has no body",
    "body-json": "a request's body is not JSON",
    "body-large": "a request's body is larger than allowed",
    "body-slow": "a request's body did not come in time",
    "body-type": "a request's content-type is not JSON",
    "field-missing": "a request lacks a field",
    "field-type": "a request's field is of another type",
    "field-value": "a request's field has a value that is not known",
    "field-unknown": "a request has a field that the interface does not know",
    "input-empty": "a request has no text, or a list of no token ids",
    "input-many": "a request has more texts than allowed",
    "model-missing": "a request names no model",
    "model-unknown": "a request names another model, or a task that does not exist at its end",
    "task-twice": "a request says in two places what goes before its texts",
    "task-ids": "a request has a task or titles for token ids",
    "path-unknown": "there is no such path",
    "method-unknown": "the path does not take this method",
    "key-wrong": "the API key is missing or wrong",
    "queue-full": "too much is waiting already",
    "time-limit": "the answer was not ready in time",
    "server-stopping": "the server is about to end",
    "server-failed": "the server can compute no more",
    "compute-failed": "the model failed on a text",
    # evaluate
    "evaluate-missing": "a library that evaluate needs is not installed",
    "set-unknown": "the folder holds no evaluation set of a known form",
    "set-choice": "the set has no such task, split, language or collection",
    "set-ids": "a relevance judgement names a query or document that is not there",
    "set-unusable": "there are too few examples for a score",
    "line-columns": "a line of a table has more or fewer columns than the first, or no number where one is needed",
    "option-context": "not a number of tokens a text can be cut to",
    # train
    "loss-shape": "the sides of a loss's batch do not fit each other",
    "train-missing": "a library that training needs is not installed",
    "train-config": "a training file cannot be read, or a key of it is unknown, missing or out of range",
    "train-recipe": "the stages of a recipe do not fit together, or changed since they ran",
    "train-state": "a run's folder is in use, is of other settings or another model, or holds what no run made",
    "train-data": "a file of training data cannot be used, or too many lines of it are malformed",
    "train-diverged": "a loss or gradient is not finite",
    "soup-mismatch": "checkpoints that are to be averaged are not of one model",
    "output-unwritable": "the output cannot be written",
    "output-in-use": "another process writes the same output",
    "output-begun": "the output was begun with other settings, another model or another input",
    "input-columns": "a table has no column of this name, or one of no texts",
    "arrow-missing": "the library that reads and writes Parquet is not installed",
}


LONGEST_REASON = 800


def printable(text: str) -> str:
    """A text on one line, without the codes a terminal obeys: names and values come from files nobody here wrote."""
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def shortened(reason: str) -> str:
    """The two ends of a reason that holds some endless value."""
    return reason if len(reason) <= LONGEST_REASON else f"{reason[:500]} ... {reason[-250:]}"


class RefembedError(ValueError):
    """What refembed raises for bad input.

    id       a key of ERRORS, for programs
    reason   one line for people: what is wrong, what was found, what to do
    index    the place of the text at fault in what was given, from 0, where it is one text's fault
    """

    def __init__(self, id: str, reason: str, index: int | None = None) -> None:
        assert id in ERRORS, id
        reason = shortened(printable(reason))
        super().__init__(reason if index is None else f"text {index}: {reason}")
        self.id = id
        self.reason = reason
        self.index = index

    def __reduce__(self) -> tuple[type["RefembedError"], tuple[str, str, int | None]]:
        """What a pool of processes sends back."""
        return type(self), (self.id, self.reason, self.index)
