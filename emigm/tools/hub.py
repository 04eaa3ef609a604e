"""Models on the Hugging Face Hub: files through its cache, and model folders of users as repositories.

The Hub client's settings hold: HF_HOME, HF_TOKEN, HF_ENDPOINT, and HF_HUB_OFFLINE for what is cached already.
"""

from __future__ import annotations

import re
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
# {repository}

A class-conditional masked image generation model (eMIGM, [arXiv 2503.07197](https://arxiv.org/abs/2503.07197)).

```python
from emigm.api import load_generator

images = load_generator("{repository}")(classes=[0, 1, 2], seeds=[0])
```
{scores}"""


def cached(file: HubFile) -> Path:
    """The file in the Hub's cache, downloaded where it is absent; raises ConfigError where it cannot be had."""
    import huggingface_hub as hub  # takes a second, and only names of the Hub need it

    try:
        return Path(hub.hf_hub_download(file.repository, file.name, revision=file.revision))
    except Exception as e:  # the types differ with the Hub client's version and its HTTP library
        text = f"{file.repository}: {file.name} is neither in the Hub's cache nor to be had from the Hub"
        raise _failed(text, e) from e


def cached_folder(repository: str, revision: str | None = None) -> Path:
    """A model folder in the Hub's cache; both its files are of one commit."""
    config = cached(HubFile(repository, CONFIG_FILE, revision))
    return cached(HubFile(repository, WEIGHTS_FILE, config.parent.name)).parent


def push_to_hub(
    folder: str | Path, repository: str, *, sampling: SampleConfig | None = None, private: bool = False
) -> str:
    """Upload a model folder in one commit; `load_generator(repository)` loads it. Nothing else of the folder goes.

    Args:
        folder: `model.safetensors` and `config.json`.
        repository: "owner/name"; it is made (`private`) where it does not exist, with a model card where it has none.
        sampling: settings that its users have by default; None: those that the folder's `config.json` names, if any.

    Returns:
        The commit's address; raises ConfigError where this is no model folder, or the Hub refuses.
    """
    import huggingface_hub as hub

    folder, remedy = Path(folder), "name a model folder"
    read_model_config(folder)
    config = read_index(folder / CONFIG_FILE, remedy)
    if config["weights"] != sha256(folder / WEIGHTS_FILE):
        raise ConfigError(f"{folder / WEIGHTS_FILE}: checksum differs from that in {CONFIG_FILE}; {remedy}")
    if sampling is not None:
        config["sampling"] = as_dict(sampling)
    card = CARD.format(repository=repository, scores=measured_scores(folder)).encode()
    with tempfile.NamedTemporaryFile(suffix=".json") as temporary:
        write_index(temporary.name, config)
        files = {CONFIG_FILE: Path(temporary.name).read_bytes(), WEIGHTS_FILE: folder / WEIGHTS_FILE}
    try:
        hub.create_repo(repository, private=private, exist_ok=True)
        if not hub.file_exists(repository, "README.md"):
            files["README.md"] = card
        operations = [hub.CommitOperationAdd(name, content) for name, content in files.items()]
        return str(hub.create_commit(repository, operations, commit_message="Upload model").commit_url)
    except Exception as e:  # see `cached`
        raise _failed(f"{repository}: uploading failed", e) from e


def measured_scores(folder: Path) -> str:
    """FID of a folder that a benchmark trained, a line for each number of steps: the mean over sampling seeds."""
    from emigm.records.frame import benchmarks_with_results, runs

    root, benchmark, size, seed = trained_by(folder) or (Path(), None, None, None)
    if benchmark is None or benchmark not in benchmarks_with_results(root):
        return ""
    rows = runs(root, [benchmark]).query("not dry_run and snapshot.isna() and fid.notna()")
    rows = rows[(rows["size"] == size) & (rows["train_seed"] == seed)]
    means = rows.groupby(["N", "title", "scored_images", "extractor", "reference"], as_index=False)["fid"].mean()
    how = "{scored_images:,.0f} images against {reference}, features of {extractor}"
    line = f"\nFID at N = {{N:.0f}}: {{fid:.2f}} ({{title}}; {how})\n"
    return "".join(line.format(**row) for row in means.to_dict("records"))


def trained_by(folder: Path) -> tuple[Path, str, str, int] | None:
    """(root of the checkout, benchmark, size, training seed) of a folder models/<benchmark>/<size>/seed<n> that a train
    stage made (`emigm.config.paths`); None: another folder."""
    match = re.fullmatch(r"(.*)/models/([^/]+)/([^/]+)/seed(\d+)", folder.resolve().as_posix())
    return (Path(match[1]), match[2], match[3], int(match[4])) if match and folder.is_dir() else None


def reason(e: Exception) -> str:
    """What went wrong, in one line."""
    return (str(e).strip() or type(e).__name__).splitlines()[0].strip("<>")


def _failed(what: str, e: Exception) -> ConfigError:
    return ConfigError(f"{what} ({reason(e)}); check the name, the network, HF_TOKEN and HF_HUB_OFFLINE")
