"""Pictures of a study's cases: all slices in the folder viewer/ beside its page, some of them in the page."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch

from ctflow.experiments.findings import Findings
from ctflow.experiments.records import Description, Finding
from ctflow.experiments.store import Store
from ctflow.experiments.support import support, support_key
from ctflow.runs.figures import figure
from ctflow.runs.pictures import SUPPORT_STEP, encoded, index, picture_in, script, sd_steps, shown_hu
from ctflow.runs.viewer import FOLDER, Viewer, described, holds, spread_over
from ctflow.volume import Volume

TRUTH = "truth"
"""Name of the reference image among a case's pictures."""

_IN_PAGE = 8_800_000  # characters of pictures in the page, in base64: with the rest of it below 10 MB
_SLICES = 8  # of each case at most


def cases(findings: Findings, groups: Sequence[Sequence[Finding]]) -> list[Viewer]:
    """Everything that the page's viewer shows; what the folder of all slices lacks is written.

    Args:
        findings: of the study.
        groups: units that are done, those of one case, protocol and seed together; worst first.

    Returns:
        A case for every group. The page itself holds pictures of as many as fit, the worst; it shows the
        others beside its folder.

    Raises:
        OutputError: the study's folder cannot be written.
    """
    units = [unit["unit"] for group in groups for unit in group]
    run = hashlib.sha256(" ".join(units).encode()).hexdigest()[:32]
    found = [_case(findings, group, run) for group in groups]
    _hold(findings.out / FOLDER, found)
    if found:
        Store(findings.out).write(f"{FOLDER}/index.js", index(run))
    return found


def title(unit: Description) -> str:
    """Case, protocol and seed of a unit in words."""
    return f"{unit['case']} · {unit['protocol']} · seed {unit['seed']}"


def worst(group: Sequence[Finding], reference: str) -> Finding:
    """The unit of the largest RMSE, of any method but the reference where there is one."""
    tested = [unit for unit in group if unit["method"] != reference] or group
    return max(tested, key=lambda unit: figure(unit["figures"], "rmse_hu") or 0.0)


def _case(findings: Findings, group: Sequence[Finding], run: str) -> Viewer:
    truth, units = findings.truth(group[0]), {unit["method"]: unit for unit in group}
    store = Store(findings.out)
    for name, unit in [(group[0]["truth"], None), *((unit["unit"], unit) for unit in group)]:
        if not (findings.out / FOLDER / name).is_dir():
            arrays = findings.image(unit) if unit else {}
            images = {kind: truth.with_data(torch.from_numpy(array)) for kind, array in arrays.items()}
            store.keep_texts(f"{FOLDER}/{name}", _scripts(images or {"hu": truth}))

    def file(method: str, kind: str) -> str:
        name = f"{units[method]['unit']}/{kind}" if method in units else ""
        return name if (findings.out / FOLDER / f"{name}-0.js").is_file() else ""

    middle, share = truth.geometry.shape[0] // 2, support(findings, group[0])
    supported = f"support-{support_key(group[0])}"
    if share is not None and not (findings.out / FOLDER / supported).is_dir():
        text = script(encoded(share / SUPPORT_STEP))
        store.keep_texts(f"{FOLDER}/{supported}", {f"share-{middle}.js": text})
    spreads = {method: file(method, "sd") for method in findings.methods}
    return described(
        truth.geometry,
        [TRUTH, *findings.methods],
        {
            "images": [f"{group[0]['truth']}/hu", *(file(method, "hu") for method in findings.methods)],
            "spreads": ["", *spreads.values()],
            "support": [f"{supported}/share"],
        },
        {method: findings.samples[method] for method, name in spreads.items() if name},
        run=run,
        first=1,
        main=worst(group, findings.reference)["method"],
        support=None if share is None else middle,
        whole=title(group[0]),
    )


def _scripts(images: dict[str, Volume]) -> dict[str, str]:
    """Files of the slices of an image, "hu", and of the standard deviation of its samples, "sd"."""
    stacks = {kind: (sd_steps if kind == "sd" else shown_hu)(volume) for kind, volume in images.items()}
    return {
        f"{kind}-{k}.js": script(encoded(numbers))
        for kind, stack in stacks.items()
        for k, numbers in enumerate(stack)
    }


def _hold(folder: Path, found: Sequence[Viewer]) -> None:
    """Put pictures into the page: as many slices of every case as fit, else one of each of the worst."""

    def sizes_of(number: int) -> list[int]:
        return [sum(_size(folder, name) for name in _names(case, number)) for case in found]

    numbers = range(_SLICES, 0, -1)
    number = next((n for n in numbers if sum(sizes_of(n)) <= _IN_PAGE), 1)
    used = 0
    for case, size in zip(found, sizes_of(number), strict=True):
        used += size
        if used > _IN_PAGE:
            break
        axial = case["planes"][0]
        axial["places"] = spread_over(axial["of"], min(number, axial["of"]))
        case["held"] = {name: picture_in(folder / f"{name}.js") for name in _names(case, number)}
    for case in found:
        case["holds"] = holds(case["planes"], case["whole"])


def _size(folder: Path, name: str) -> int:
    return (folder / f"{name}.js").stat().st_size


def _names(case: Viewer, number: int) -> list[str]:
    """Names of a case's pictures where the page holds so many of its slices."""
    depth, files = case["planes"][0]["of"], case["files"]
    places = spread_over(depth, min(number, depth))
    names = [f"{file}-{k}" for file in files["images"] + files["spreads"] if file for k in places]
    return names + [f"{file}-{case['support']['place']}" for file in files["support"] if case["support"]]
