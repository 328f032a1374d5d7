"""Where pretrained weights lie: in the cache, or on a hub that answers.

timm and huggingface_hub retry an unreachable hub for about a minute. Here the cache is looked into first and
the hub is asked once, briefly, so that a node without a network is told what to do within seconds. Nothing
heavy is imported at module level: `check_reachable` answers before torch has been imported.
"""

from __future__ import annotations

import http.client
import os
import re
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from huggingface_hub import constants as hf

from binarize_cli.errors import InputError
from binarize_cli.models.saved import CONFIG, WEIGHTS

if TYPE_CHECKING:
    from binarize_cli.models.names import ModelName

PATIENCE = 3.0  # seconds that a hub has to answer
TORCH_HUB = "https://download.pytorch.org"
REPOSITORY = r"[\w.\-]+/[\w.\-]+(@[\w.\-/]+)?"  # owner/name, perhaps @revision


def check_reachable(name: ModelName) -> None:
    """Raise InputError if nothing is cached and the hub of `name` does not answer; takes seconds at most.

    To be called before torch is imported. `load` looks again, for the very file.
    """
    if name.own or name.saved:  # a folder needs no hub, and the config of a repository has just come
        return
    if name.source == "torchvision":
        cache, cached, url = torch_cache(), "*", TORCH_HUB
    else:
        cache, cached, url = Path(hf.HF_HUB_CACHE), "models--*", hf.ENDPOINT
    if not any(cache.glob(cached)):
        _require_answer(name.name, url, cache)


def fetch_config(name: str, repo: str) -> Path:
    """Return config.json of the Hugging Face repository `repo`, cached. Raises InputError if it has none."""
    if not re.fullmatch(REPOSITORY, repo):
        hint = "For instance hf-hub:timm/resnet18.a1_in1k."
        raise InputError("not OWNER/NAME, nor OWNER/NAME@REVISION", where=name, hint=hint)
    return _fetch_first(name, repo, (CONFIG,))


def fetch_from_hf(name: str, repo: str) -> Path:
    """Return the weights file of the Hugging Face repository `repo` (`owner/name`, or with `@revision`)."""
    return _fetch_first(name, repo, WEIGHTS)


def _fetch_first(name: str, repo: str, files: Sequence[str]) -> Path:
    """Return the first of the files that the repository has, in the cache or downloaded there."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    repo, _, revision = repo.partition("@")
    for file in files:
        if isinstance(path := try_to_load_from_cache(repo, file, revision=revision or None), str):
            return Path(path)

    cache = Path(hf.HF_HUB_CACHE)
    _require_answer(name, hf.ENDPOINT, cache)
    for file in files:
        try:
            return Path(hf_hub_download(repo, file, revision=revision or None))
        except LocalEntryNotFoundError as error:  # a kind of EntryNotFoundError, but the network's fault
            raise _not_to_be_had(name, cache, f"the download failed ({error})") from error
        except EntryNotFoundError:
            continue
        except (OSError, HfHubHTTPError) as error:
            raise _not_to_be_had(name, cache, f"the download failed ({error})") from error
    raise _not_to_be_had(name, cache, f"{repo} holds neither {' nor '.join(files)}")


def fetch_url(name: str, url: str) -> Path:
    """Return the weights file at `url`, in the cache that torchvision and timm look into."""
    from torch.hub import download_url_to_file

    path = torch_cache() / Path(urlsplit(url).path).name
    if path.exists():
        return path
    _require_answer(name, url, path.parent)
    path.parent.mkdir(parents=True, exist_ok=True)
    checksum = re.search(r"-([0-9a-f]{8,})\.", path.name)
    try:
        download_url_to_file(url, str(path), checksum and checksum[1])
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        raise _not_to_be_had(name, path.parent, f"the download failed ({error})") from error
    return path


def torch_cache() -> Path:
    """Return the folder in which torch.hub keeps checkpoints; torch has the same rules."""
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("TORCH_HOME") or f"{caches}/torch"
    return Path(home).expanduser() / "hub" / "checkpoints"


def _require_answer(name: str, url: str, cache: Path) -> None:
    if url == hf.ENDPOINT and hf.HF_HUB_OFFLINE:
        raise _not_to_be_had(name, cache, "HF_HUB_OFFLINE forbids to ask the hub")
    if not answers(url):
        raise _not_to_be_had(name, cache, f"{urlsplit(url).hostname} does not answer")


def answers(url: str, patience: float = PATIENCE) -> bool:
    """Return whether the server of `url`, through a proxy if set, says anything in `patience` seconds."""
    answered = threading.Event()

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=patience).close()
            answered.set()
        except urllib.error.HTTPError:
            answered.set()  # it refuses this request, but it is there
        except (OSError, http.client.HTTPException, ValueError) as error:
            # Python may lack the certificates that the downloader brings along: that is for it to judge.
            if isinstance(getattr(error, "reason", None), ssl.SSLCertVerificationError):
                answered.set()

    # The timeout of a socket does not cover the look-up of a name; waiting for a thread covers everything.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(patience)
    return answered.is_set()


def _not_to_be_had(name: str, cache: Path, why: str) -> InputError:
    return InputError(
        f"its pretrained weights are not in the cache, {cache}, and {why}",
        where=name,
        hint="Give them with --weights FILE, fill that cache on a machine with a network, "
        "or start from random weights with --no-pretrained.",
    )
