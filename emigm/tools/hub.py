"""Models on the Hugging Face Hub: files through its cache, and model folders of users as repositories.

The Hub client's settings hold: HF_HOME, HF_TOKEN, HF_ENDPOINT, and HF_HUB_OFFLINE for what is cached already.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from emigm.config.errors import ConfigError
from emigm.config.parsing import as_dict
from emigm.config.schema import SampleConfig
from emigm.io import read_index, sha256, write_index
from emigm.model.model import CONFIG_FILE, WEIGHTS_FILE, read_model_config
from emigm.tools.artefacts import HubFile

CARD = """---
library_name: emigm
pipeline_tag: unconditional-image-generation
---
A class-conditional masked image generation model (eMIGM, [arXiv 2503.07197](https://arxiv.org/abs/2503.07197)).

```python
from emigm.api import load_generator

images = load_generator("{repository}")(classes=[0, 1, 2], seeds=[0])
```
"""


def cached(file: HubFile) -> Path:
    """The file in the Hub's cache, downloaded where it is absent.

    Raises:
        ConfigError: it is not on the Hub, or neither cached nor within reach.
    """
    import huggingface_hub as hub  # takes a second, and only names of the Hub need it

    try:
        return Path(hub.hf_hub_download(file.repository, file.name, revision=file.revision))
    except Exception as e:  # the types differ with the Hub client's version and its HTTP library
        raise _failed(
            f"{file.repository}: {file.name} is neither in the Hub's cache nor to be had from the Hub", e
        ) from e


def cached_folder(repository: str, revision: str | None = None) -> Path:
    """A model folder in the Hub's cache; both its files are of one commit."""
    config = cached(HubFile(repository, CONFIG_FILE, revision))
    return cached(HubFile(repository, WEIGHTS_FILE, config.parent.name)).parent


def push_to_hub(
    folder: str | Path,
    repository: str,
    *,
    sampling: SampleConfig | None = None,
    private: bool = False,
    message: str = "Upload model",
) -> str:
    """Upload a model folder in one commit; `load_generator(repository)` loads it. Nothing else of the folder goes.

    Args:
        folder: `model.safetensors` and `config.json`.
        repository: "owner/name"; it is made where it does not exist.
        sampling: settings that its users have by default; None: those that the folder's `config.json` names, if any.
        private: whether a new repository is private.
        message: of the commit.

    Returns:
        The commit's address.

    Raises:
        ConfigError: this is no model folder, or the Hub refuses.
    """
    import huggingface_hub as hub

    folder, remedy = Path(folder), "name a model folder"
    read_model_config(folder)
    config = read_index(folder / CONFIG_FILE, remedy)
    if config["weights"] != sha256(folder / WEIGHTS_FILE):
        raise ConfigError(f"{folder / WEIGHTS_FILE}: checksum differs from that in {CONFIG_FILE}; {remedy}")
    if sampling is not None:
        config["sampling"] = as_dict(sampling)
    with tempfile.TemporaryDirectory() as made:
        write_index(Path(made) / CONFIG_FILE, config)
        text = (Path(made) / CONFIG_FILE).read_bytes()
    files: dict[str, bytes | Path] = {CONFIG_FILE: text, WEIGHTS_FILE: folder / WEIGHTS_FILE}
    try:
        hub.create_repo(repository, private=private, exist_ok=True)
        if not hub.file_exists(repository, "README.md"):
            files["README.md"] = CARD.format(repository=repository).encode()
        operations = [hub.CommitOperationAdd(name, content) for name, content in files.items()]
        return str(hub.create_commit(repository, operations, commit_message=message).commit_url)
    except Exception as e:  # see `cached`
        raise _failed(f"{repository}: uploading failed", e) from e


def _failed(what: str, e: Exception) -> ConfigError:
    reason = (str(e) or type(e).__name__).strip().splitlines()[0]
    return ConfigError(f"{what} ({reason}); check the name, the network, HF_TOKEN and HF_HUB_OFFLINE")
