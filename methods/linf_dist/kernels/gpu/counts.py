"""Instructions per (row, output, feature) of the kernels' inner loops, counted in the machine code for sm_90.

No device is needed: Triton compiles for a named target and its own nvdisasm lists the result. The counts bound the
time from below (an SM of compute capability 9.0 issues 128 lane-instructions a clock); they are not times.
"""

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import triton
from triton.backends import nvidia
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TARGET = GPUTarget("cuda", 90, 32)
TOOLS = Path(nvidia.__file__).parent / "bin"


@dataclass(frozen=True)
class Loop:
    """One loop of a kernel: instructions by opcode for a single trip, without the loops inside it."""

    opcodes: Counter[str]

    @property
    def total(self) -> int:
        return sum(self.opcodes.values())


@dataclass(frozen=True)
class Compiled:
    """What ptxas made of a kernel: registers per thread, bytes of stack (spills), shared bytes, loops in order."""

    registers: int
    stack: int
    shared: int
    loops: list[Loop]

    def per_element(self, elements: int, loop: int = 0) -> float:
        """Instructions of the loop-th longest loop for each of the `elements` that one thread handles in a trip."""
        return sorted(self.loops, key=lambda a: -a.total)[loop].total / elements


def compile_for(
    kernel: "triton.JITFunction", types: dict[str, str], constants: dict[str, int | bool | float | None], warps: int,
    unaligned: frozenset[str] = frozenset(), multiples: frozenset[str] = frozenset(),
) -> Compiled:
    """Compile `kernel` for sm_90. `types` gives each argument as Triton names it (`*fp32`, `i32`), pointers aligned
    to 16 bytes but for the `unaligned`, integers in `multiples` known to be multiples of 16."""
    names = list(kernel.arg_names)
    known = {n for n, t in types.items() if t.startswith("*")} - unaligned | (multiples & types.keys())
    aligned = {(names.index(n),): [["tt.divisibility", 16]] for n in known}
    source = ASTSource(
        kernel,
        {n: types.get(n, "constexpr") for n in names},
        {(names.index(n),): v for n, v in constants.items()},
        aligned,
    )
    cubin = triton.compile(source, target=TARGET, options={"num_warps": warps, "num_stages": 1}).asm["cubin"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        listing = _run("nvdisasm", "-c", path)
        usage = _run("cuobjdump", "-res-usage", path)
    found = {k: int(v) for k, v in re.findall(r"(REG|STACK|SHARED):(\d+)", usage)}
    return Compiled(found["REG"], found["STACK"], found["SHARED"], _loops(listing))


def _run(tool: str, option: str, path: Path) -> str:
    done = subprocess.run([str(TOOLS / tool), option, str(path)], capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def _loops(listing: str) -> list[Loop]:
    """Every backward branch closes a loop; an instruction counts for the innermost loop around it only."""
    labels: dict[str, int] = {}
    code: list[str] = []
    for line in listing.splitlines():
        if label := re.match(r"^(\.L_\S+):", line):
            labels[label.group(1)] = len(code)
        elif instruction := re.search(r"/\*[0-9a-f]{4,}\*/\s+(.*?);", line):
            code.append(instruction.group(1))
    spans = []
    for end, text in enumerate(code):
        jump = re.search(r"BRA.*`\((\.L_\S+)\)", text)
        if jump and labels.get(jump.group(1), end + 1) < end:  # a branch to itself is the trap after EXIT
            spans.append((labels[jump.group(1)], end))
    spans.sort(key=lambda s: s[1] - s[0])
    taken: set[int] = set()
    loops = []
    for start, end in spans:
        body = [n for n in range(start, end + 1) if n not in taken]
        taken.update(body)
        loops.append(Loop(Counter(_opcode(code[n]) for n in body)))
    return loops


def _opcode(text: str) -> str:
    return re.sub(r"^@!?U?P\w+\s+", "", text).split()[0].split(".")[0]
