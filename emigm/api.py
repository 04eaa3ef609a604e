"""For Python users: load a model, generate, get pictures::

    from emigm.api import load_generator
    from emigm.config.schema import SampleConfig

    generator = load_generator("models/mnist/h/seed0")
    sampling = SampleConfig(steps=16, solver_steps=12, cfg_scale=2.0, cfg_interval=(0.1, 0.4))
    rows = generator(classes=range(10), seeds=[0, 1, 2], sampling=sampling)
    rows[0][7].save("seven.png")

For the paper's models the sampling settings can be left out, and released ones come by name::

    load_generator("256-l")(classes=[207, 360], seeds=[0])

"mnist-h" is the default benchmark's largest, without training: the weights that git tracks.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from emigm.autoencoders.autoencoder import Autoencoder, load_autoencoder
from emigm.config.errors import check
from emigm.config.parsing import as_dict, parse
from emigm.config.paths import expand, weights_folder
from emigm.config.schema import AutoencoderConfig, SampleConfig
from emigm.io import read_index, sha256, write_index
from emigm.model.checkpoints import import_official
from emigm.model.model import CONFIG_FILE, EMIGM, WEIGHTS_FILE, load_model, read_model_config
from emigm.paper.settings import PAPER_AUTOENCODERS, PAPER_KEYS, PAPER_MODELS, paper_sampling
from emigm.sample import generate
from emigm.tools.fetch import MIRRORS, HubFile, cached, hub_error, released_file

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


@dataclass(frozen=True)
class Generator:
    """A model with the autoencoder that turns its latents into images."""

    model: EMIGM
    autoencoder: Autoencoder
    sampling: SampleConfig | None = None
    """Settings that apply where a call gives none: the paper's at its lower NFE budget (Table 2 or 3) for its models,
    or those that the model folder's `config.json` names. None: every call has to give them."""

    def batches(
        self, classes: Iterable[int], seed: int, sampling: SampleConfig | None = None, batch: int = 64
    ) -> Iterator[Tensor]:
        """Unit latents (B, channels, grid, grid), one image for each class, as they are made.

        Args:
            classes: class numbers; the position in the list is the image's index.
            seed: sampling seed; an image is a function of (weights, seed, index, class).
            sampling: settings; None: the model's own; ConfigError where it has none.
            batch: images made at once; changes speed and memory only.
        """
        sampling = sampling or self.sampling
        check(sampling is not None, "sampling: this model names no settings of its own, so give a SampleConfig")
        labels = torch.tensor(list(classes), dtype=torch.int64)
        return (p.latents for p in generate(self.model, labels, sampling, seed=seed, chunk=256, batch=batch))

    def latents(self, classes: Iterable[int], seed: int, sampling: SampleConfig | None = None) -> Tensor:
        """Unit latents (n, channels, grid, grid) of all classes; see `batches`."""
        return torch.cat(list(self.batches(classes, seed, sampling)))

    def images(
        self, classes: Iterable[int], seed: int, sampling: SampleConfig | None = None, batch: int = 64
    ) -> Iterator[Image.Image]:
        """One image for each class, as they are made; see `batches`."""
        for latents in self.batches(classes, seed, sampling, batch):
            yield from self.decode(latents)

    def __call__(
        self, classes: Iterable[int], seeds: Iterable[int], sampling: SampleConfig | None = None
    ) -> list[list[Image.Image]]:
        """Images: one row for each seed, one column for each class; see `batches`."""
        classes = list(classes)
        return [list(self.images(classes, seed, sampling)) for seed in seeds]

    def decode(self, latents: Tensor) -> list[Image.Image]:
        """Unit latents (n, channels, grid, grid) => n images, grey or RGB."""
        pixels = self.autoencoder.decode(latents).permute(0, 2, 3, 1).cpu().numpy()  # NHWC, uint8
        return [Image.fromarray(p[..., 0] if p.shape[-1] == 1 else p) for p in pixels]


def load_generator(
    name: str | Path,
    autoencoder: AutoencoderConfig | str | Path | None = None,
    device: str = "cpu",
    revision: str | None = None,
) -> Generator:
    """Load a model folder of this project, a released `.pth` file, or a model on the Hugging Face Hub.

    Args:
        name: a folder with `model.safetensors` and `config.json`; an official checkpoint; the name of one of the
            paper's nine, such as "256-l"; a benchmark and one of its models, such as "mnist-h" (`trained_model`); or a
            repository that `push_to_hub` wrote, as "owner/name".
        autoencoder: its configuration, or, for the paper's models, the path of its weights (`kl16.ckpt`, the
            DC-AE file or folder); None: what the folder's `config.json` names, or else the released one from the Hub.
        device: where to load both.
        revision: of a model on the Hub: branch, tag or commit.

    Raises:
        ConfigError: something is missing, damaged or of another kind.
    """
    path, key = Path(name), PAPER_KEYS.get(str(name))
    if not path.exists() and key is not None:
        file = released_file(*key)
        path = cached(file._replace(revision=revision or file.revision))
    elif not path.exists() and (folder := trained_model(str(name))):
        path = folder
    elif not path.exists():
        released = f"none of the released models ({', '.join(PAPER_KEYS)})"
        others = f"{released} or of those trained here or kept in results/, such as mnist-h"
        on_hub = re.fullmatch(r"[\w.-]+/[\w.-]+", str(name)) is not None
        check(on_hub, f"{name}: no such folder or file, and {others}")
        path = cached_folder(str(name), revision)
    if path.is_file():
        with tempfile.TemporaryDirectory() as folder:
            import_official(path, folder, PAPER_MODELS[key] if key else None)
            return _from_folder(Path(folder), autoencoder, device)
    return _from_folder(path, autoencoder, device)


def trained_model(name: str) -> Path | None:
    """Folder of a model that is called <benchmark>-<model>, such as "mnist-h": the first training seed's in models/, or
    the copy that git tracks in results/; None: there is neither."""
    benchmark, _, size = name.rpartition("-")
    trained = sorted(Path("models", benchmark, size).glob("seed*"), key=lambda folder: (len(folder.name), folder.name))
    folders = [*trained, weights_folder(benchmark, size)]
    return next((f for f in folders if benchmark and (f / CONFIG_FILE).is_file()), None)


def _from_folder(folder: Path, autoencoder: AutoencoderConfig | str | Path | None, device: str) -> Generator:
    cfg, facts = read_model_config(folder)
    paper = next((key for key, known in PAPER_MODELS.items() if known == cfg), None)
    if not isinstance(autoencoder, AutoencoderConfig):
        autoencoder = _autoencoder(folder, facts, paper, autoencoder)
    if "sampling" in facts:
        sampling = parse(SampleConfig, facts["sampling"], f"{folder}/config.json: sampling")
    else:
        sampling = paper_sampling(*paper, steps=16) if paper else None
    model = load_model(folder, device=device).float()  # those in results/ are stored in half the bytes
    return Generator(model, load_autoencoder(autoencoder, device), sampling)


def _autoencoder(
    folder: Path, facts: dict[str, Any], paper: tuple[int, str] | None, weights: str | Path | None
) -> AutoencoderConfig:
    """The configuration of a folder's autoencoder, with these weights; None: its own, or the released ones."""
    if "autoencoder" in facts:
        cfg = parse(AutoencoderConfig, facts["autoencoder"], f"{folder}/config.json: autoencoder")
        if weights is None and (cfg.kind not in MIRRORS or expand(cfg.weights).exists()):
            return cfg
        kind, scale = cfg.kind, cfg.scale
    else:
        check(paper is not None, f"{folder}: its config.json names no autoencoder; give an AutoencoderConfig")
        kind, scale = PAPER_AUTOENCODERS[paper[0]]
    check(kind in MIRRORS, f"{folder}: its autoencoder, of kind: {kind}, takes no weights of others")
    return AutoencoderConfig(kind, scale, str(weights or cached(MIRRORS[kind][-1])))


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
    same = config["weights"] == sha256(folder / WEIGHTS_FILE)
    check(same, f"{folder / WEIGHTS_FILE}: checksum differs from that in {CONFIG_FILE}; {remedy}")
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
        raise hub_error(f"{repository}: uploading failed", e) from e


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
