"""Which cores and GPUs each worker of a sweep gets, found without starting jax."""

from __future__ import annotations

import dataclasses
import os
import subprocess
from collections.abc import Iterable, Mapping

from ml_collections import ConfigDict

from lcx.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Share:
    """What one worker may use; empty: whatever there is."""

    cores: tuple[int, ...] = ()
    gpus: tuple[str, ...] = ()

    def environment(self) -> dict[str, str]:
        return {"CUDA_VISIBLE_DEVICES": ",".join(self.gpus)} if self.gpus else {}


def gpus(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Ids of the GPUs that this process may use: CUDA_VISIBLE_DEVICES, else `nvidia-smi -L`."""
    platforms = environment.get("JAX_PLATFORMS", "")
    if platforms and not {"cuda", "gpu"} & set(platforms.split(",")):
        return []
    if (visible := environment.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [word.strip() for word in visible.split(",") if word.strip() not in ("", "-1")]
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30,
                                env=dict(environment)).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [str(n) for n, _ in enumerate(x for x in listed.splitlines() if x.startswith("GPU "))]


def needed(configs: Iterable[ConfigDict]) -> int:
    """GPUs of the widest member: the mesh sizes that are not "the rest"; 1 where none is said."""
    widths = [1]
    for config in configs:
        width = 1
        for size in config.runtime.mesh.values():
            width *= max(size, 1)
        widths.append(width)
    return max(widths)


def shares(jobs: int | None, members: int, need: int) -> list[Share]:
    """What each worker gets; `jobs` None: as many as the GPUs hold, one without GPUs.

    Raises ConfigError where `jobs` members do not fit on the GPUs together.
    """
    if jobs is not None and jobs < 1:
        raise ConfigError(f"--jobs={jobs}: take 1 or more worker processes")
    found = gpus()
    if found and jobs is None:
        jobs, each = max(1, len(found) // need), min(need, len(found))
    elif found and jobs * need > len(found):
        raise ConfigError(f"--jobs={jobs} members of {need} GPUs each need {jobs * need} GPUs but "
                          f"{len(found)} can be used; lower --jobs or runtime.mesh")
    else:
        each = len(found) // jobs if found else 0
    jobs = min(jobs or 1, members)
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    split = jobs > 1 and len(cores) >= jobs
    return [Share(tuple(cores[n::jobs]) if split else (), tuple(found[n * each:(n + 1) * each]))
            for n in range(jobs)]
