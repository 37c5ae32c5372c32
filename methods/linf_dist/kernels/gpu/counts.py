"""Instructions per (row, output, feature) of the kernels' inner loops, counted in the machine code for sm_90.

No device is needed: Triton compiles for a named target and its own nvdisasm lists the result. The counts bound the
time from below (an SM of compute capability 9.0 issues 128 lane-instructions a clock); they are not times.
"""

import functools
import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import triton
from triton.backends import nvidia
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from methods.linf_dist.kernels.gpu import (
    bounds,
    candidates,
    finite,
    gradient,
    linf,
    pairs,
    products,
    robust,
    scatter,
    tiling,
)

TARGET = GPUTarget("cuda", 90, 32)
TOOLS = Path(nvidia.__file__).parent / "bin"
PARTS = frozenset({"high_ptr", "low_ptr", "x_ptr", "x_low_ptr", "w_ptr", "w_low_ptr", "c_ptr", "c_low_ptr", "other_ptr",
                   "other_low_ptr"})
INTEGER_POINTERS = {"start_ptr", "list_ptr", "count_ptr", "code_ptr", "block_ptr", "run_ptr", "flag_ptr"}


@dataclass(frozen=True)
class Subject:
    """A kernel as it is launched, and how many elements one thread handles in a trip of its longest loop."""

    kernel: Any
    constants: dict[str, Any]
    warps: int
    elements: int
    unaligned: frozenset[str] = frozenset()
    multiples: frozenset[str] = frozenset()  # integers that are multiples of 16 in layers of usual size
    stages: int = 1
    half: frozenset[str] = frozenset()  # pointers to bfloat16


@dataclass(frozen=True)
class Count:
    """What ptxas made of a kernel: registers per thread, shared bytes, and its longest loop per element."""

    name: str
    registers: int
    shared: int
    opcodes: dict[str, float] = field(repr=False)

    @property
    def per_element(self) -> float:
        return sum(self.opcodes.values())

    @property
    def spills(self) -> float:
        """Accesses to spilled registers per element."""
        return self.opcodes.get("LDL", 0.0) + self.opcodes.get("STL", 0.0)


def _subjects() -> dict[str, Subject]:
    tile = tiling.WIDE
    wide, held = tile.constants(), tile.rows * tile.outs
    step: dict[str, Any] = {**wide, "UNROLL": tiling.UNROLL, "INTERPRETED": False}
    fused: dict[str, Any] = {
        "INTERPRETED": False, "TILE_ROWS": gradient.FUSED_ROWS, "TILE_FEATURES": gradient.FUSED_FEATURES,
    }
    lists: dict[str, Any] = {"TILE_ROWS": candidates.TILE_ROWS, "GROUP": candidates.GROUP}
    sizes = frozenset({"n_in", "n_outs", "capacity"})
    subjects = {}
    for name, with_block in (("inf", False), ("inf, argmax", True)):
        subjects[name] = Subject(
            linf.linf_forward, {"GATED": False, "WITH_BLOCK": with_block, "BLOCK": linf.BLOCK, **wide}, tile.warps,
            linf.BLOCK * held,
        )
    subjects["bounds"] = Subject(bounds.linf_bounds, {"UNROLL": tiling.UNROLL, **wide}, tile.warps,
                                 tiling.UNROLL * held)
    subjects["inf, gradient"] = Subject(scatter.scatter_rows, {"CHUNK": scatter.CHUNK}, 4, 1)
    for name, half in (("p = 8", 4), ("p = 10", 5), ("p = 12", 6), ("p = 20", 10), ("real p", 0)):
        kind: dict[str, Any] = {"HALF_P": half, "NORMALISED": not 0 < 2 * half <= finite.PLAIN_MAX}
        subjects[name] = Subject(finite.finite_forward, {**kind, **step}, tile.warps, tiling.UNROLL * held)
        subjects[f"{name}, one gradient"] = Subject(
            gradient.gradient_rows, {**kind, **step}, tile.warps, tiling.UNROLL * held, frozenset({"base_ptr"})
        )
        subjects[f"{name}, both gradients"] = Subject(
            gradient.gradient_fused, {**kind, **fused}, gradient.FUSED_FEATURES // 32, gradient.FUSED_ROWS
        )
    options: dict[str, Any]
    entry = candidates.GROUP * candidates.TILE_ROWS // 32
    for name, kernel, options in (
        ("lists, inf", candidates.list_linf, {"WITH_CODE": False}),
        ("lists, inf, argmax", candidates.list_linf, {"WITH_CODE": True}),
        ("lists, large p", candidates.list_power, {"SAVE": False, "INTERPRETED": False}),
        ("lists, large p, dw", candidates.list_gradient_w, {"INTERPRETED": False}),
        ("lists, large p, dx", candidates.list_gradient_x, {"INTERPRETED": False}),
    ):
        subjects[name] = Subject(kernel, {**options, **lists}, 1, entry, multiples=sizes)
    find: dict[str, Any] = {"GROUP": candidates.GROUP, "CHUNK": candidates.CHUNK}
    subjects["finding lists"] = Subject(
        candidates.find_features, {"EXACT": False, "SEEDS": candidates.SEEDS, **lists, **find}, 1,
        candidates.CHUNK // 32, multiples=sizes,
    )
    subjects["finding lists of outputs"] = Subject(candidates.find_outputs, find, 1, candidates.CHUNK // 32,
                                                   multiples=sizes)
    square: dict[str, Any] = {"SIDE": robust.SIDE, "FEATURES": robust.FEATURES}
    subjects |= {
        "locating the argmax": Subject(
            linf.linf_locate, {"GATED": True, "PAIRS": linf.PAIRS, "BLOCK": linf.BLOCK}, 4, 1
        ),
        "redo": Subject(robust.redo_pairs, square, 4, robust.SIDE**2 * robust.FEATURES // 128),
        "redo, gradient": Subject(robust.redo_rows, {**square, "FEATURES": 64}, 4, robust.SIDE * 64 // 128),
        "listed pairs": Subject(pairs.pair_values, {"P": 8, "BLOCK": pairs.BLOCK}, 1, pairs.BLOCK // 32),
        "listed pairs, gradient": Subject(pairs.pair_gradients, {"P": 8, "BLOCK": pairs.BLOCK}, 4, pairs.BLOCK // 128),
    }
    product: dict[str, Any] = {"COUNT": 7, "TILE": products.TILE, "DEPTH": products.DEPTH}
    per_step = products.TILE**2 * products.DEPTH // 256
    for name, how in products.KINDS.items():
        for what, kernel in (("values", products.power_values), ("gradient", products.power_gradients)):
            subjects[f"products in {name}, {what}"] = Subject(
                kernel, {**product, "KIND": how}, 8, per_step, multiples=sizes | {"n_rows", "n_pairs"}, stages=3,
                half=PARTS if how == products.SPLIT else frozenset(),
            )
        subjects[f"forming powers in {name}"] = Subject(
            products.form_powers,
            {"COUNT": 7, "KIND": how, "ROWS": products.FORM_ROWS, "FEATURES": products.FORM_FEATURES}, 4,
            products.FORM_ROWS * products.FORM_FEATURES // 128, multiples=sizes,
            half=PARTS if how == products.SPLIT else frozenset(),
        )
    return subjects


def names() -> list[str]:
    """What can be counted. An element is a triple (row, output, feature); for lists, one that is visited.

    For the finding of lists it is a pair (output, feature) of a tile of 128 rows; for "inf, gradient" a chunk of 128
    pairs; for products a multiply-accumulate of the format's several. Kernels without a loop count as 0.
    """
    return list(_subjects())


@functools.cache
def cubin(name: str) -> bytes:
    """Machine code of a subject for sm_90.

    Raises:
        KeyError: no such subject; `names` lists them.
    """
    subject = _subjects()[name]
    arguments = list(subject.kernel.arg_names)
    types = {n: "*bf16" if n in subject.half else _type(n) for n in arguments if n not in subject.constants}
    known = {n for n, t in types.items() if t.startswith("*")} - subject.unaligned | (subject.multiples & types.keys())
    source = ASTSource(
        subject.kernel,
        {n: types.get(n, "constexpr") for n in arguments},
        {(arguments.index(n),): v for n, v in subject.constants.items()},
        {(arguments.index(n),): [["tt.divisibility", 16]] for n in known},
    )
    options = {"num_warps": subject.warps, "num_stages": subject.stages}
    return bytes(triton.compile(source, target=TARGET, options=options).asm["cubin"])


def _type(argument: str) -> str:
    if argument.endswith("_ptr"):
        return "*i32" if argument in INTEGER_POINTERS else "*fp32"
    return "fp32" if argument == "sign" else "i32"


@functools.cache
def listing(name: str) -> str:
    """Disassembly of a subject."""
    return _run("nvdisasm", "-c", cubin(name))


def count(name: str) -> Count:
    """Registers of a subject, and the opcodes of its longest loop per element (loops inside it not counted)."""
    usage = _run("cuobjdump", "-res-usage", cubin(name))
    found = {k: int(v) for k, v in re.findall(r"(REG|SHARED):(\d+)", usage)}
    longest = max(_loops(listing(name)), key=lambda loop: sum(loop.values()), default=Counter())
    elements = _subjects()[name].elements
    return Count(name, found["REG"], found["SHARED"], {op: n / elements for op, n in longest.most_common()})


def _run(tool: str, option: str, code: bytes) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(code)
        done = subprocess.run([str(TOOLS / tool), option, str(path)], capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def _loops(text: str) -> list[Counter[str]]:
    """Opcodes of every loop. A backward branch closes a loop; an instruction counts for the innermost one only."""
    labels: dict[str, int] = {}
    code: list[str] = []
    for line in text.splitlines():
        if label := re.match(r"^(\.L_\S+):", line):
            labels[label.group(1)] = len(code)
        elif instruction := re.search(r"/\*[0-9a-f]{4,}\*/\s+(.*?);", line):
            code.append(instruction.group(1))
    spans = []
    for end, instruction_text in enumerate(code):
        jump = re.search(r"BRA.*`\((\.L_\S+)\)", instruction_text)
        if jump and labels.get(jump.group(1), end + 1) < end:  # a branch to itself is the trap behind EXIT
            spans.append((labels[jump.group(1)], end))
    spans.sort(key=lambda span: span[1] - span[0])
    taken: set[int] = set()
    loops = []
    for start, end in spans:
        body = [n for n in range(start, end + 1) if n not in taken]
        taken.update(body)
        loops.append(Counter(_opcode(code[n]) for n in body))
    return loops


def _opcode(text: str) -> str:
    return re.sub(r"^@!?U?P\w+\s+", "", text).split()[0].split(".")[0]
