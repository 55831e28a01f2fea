"""Makes stand-ins for CUDA's libraries, with which a torch built for CUDA can be imported.

For each library that torch's own libraries need and that neither torch nor the system has, gcc
builds one that defines the symbols, with their versions, that torch wants of it. Every function
returns 100, which is ``cudaErrorNoDevice``: torch then finds no GPU. The stand-ins lie in
``torch/lib``, where torch's libraries look first, so only environments made for tests get them.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import defaultdict
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from elftools.elf.elffile import ELFFile
from elftools.elf.gnuversions import GNUVerNeedSection, GNUVerSymSection

#: Symbols without a version: the first stand-in defines those that look like CUDA's.
CUDAS = re.compile(r"_*(cu|nv|nccl|cupti|cudnn|cublas|cufile|Nv)")
#: Of the C library, by whatever path the loader finds it.
OF_THE_SYSTEM = ("ld-linux", "libc.so", "libm.so")


@dataclass
class Wanted:
    """What torch's libraries take from other libraries."""

    libraries: set[str] = field(default_factory=set)
    #: library -> version -> symbols
    versioned: defaultdict[str, defaultdict[str, set[str]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(set))
    )
    unversioned: set[str] = field(default_factory=set)
    defined: set[str] = field(default_factory=set)


def main() -> None:
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        raise SystemExit("there is no torch")
    package = Path(spec.origin).parent
    files = [*sorted((package / "lib").glob("*.so*")), *package.glob("_C*.so")]
    wanted = Wanted()
    for file in files:
        look_into(file, wanted)
    here = {file.name for file in files} | of_the_system()
    missing = sorted(name for name in wanted.libraries - here if not name.startswith(OF_THE_SYSTEM))
    loose = {name for name in wanted.unversioned - wanted.defined if CUDAS.match(name)}
    for name in missing:
        build(package / "lib" / name, wanted.versioned[name], loose)
        loose = set()
    print(f"stand-ins for {len(missing)} libraries: {', '.join(missing)}")


def of_the_system() -> set[str]:
    listed = subprocess.run(["/sbin/ldconfig", "-p"], capture_output=True, text=True, check=True)
    return set(re.findall(r"^\s+(\S+) \(", listed.stdout, re.MULTILINE))


def look_into(file: Path, wanted: Wanted) -> None:
    with file.open("rb") as stream:
        elf = ELFFile(stream)
        tags = elf.get_section_by_name(".dynamic").iter_tags()
        wanted.libraries |= {tag.needed for tag in tags if tag.entry.d_tag == "DT_NEEDED"}
        needs, versions = {}, None
        for section in elf.iter_sections():
            if isinstance(section, GNUVerSymSection):
                versions = section
            if isinstance(section, GNUVerNeedSection):
                for need, parts in section.iter_versions():
                    for part in parts:
                        needs[part.entry.vna_other & 0x7FFF] = need.name, part.name
        for number, symbol in enumerate(elf.get_section_by_name(".dynsym").iter_symbols()):
            if symbol.entry.st_shndx != "SHN_UNDEF":
                wanted.defined.add(symbol.name)
                continue
            version = versions.get_symbol(number).entry["ndx"] if versions else None
            if isinstance(version, int) and version & 0x7FFF in needs:
                library, name = needs[version & 0x7FFF]
                wanted.versioned[library][name].add(symbol.name)
            elif symbol.name:
                wanted.unversioned.add(symbol.name)


def build(library: Path, versions: dict[str, set[str]], loose: set[str]) -> None:
    lines = [".text"]
    for name in sorted(loose.union(*versions.values())):
        lines += [f".globl {name}", f".type {name},@function", f"{name}:"]
        # What this returns is dereferenced when torch is imported.
        is_handle = name == "__cudaRegisterFatBinary"
        lines += ["lea dummy(%rip),%rax" if is_handle else "mov $100,%eax", "ret"]
    lines += [".data", "dummy: .zero 256", '.section .note.GNU-stack,"",@progbits', ""]
    script = [
        f"{version} {{ global: {' '.join(f'{name};' for name in sorted(names))} }};\n"
        for version, names in versions.items()
    ]
    with tempfile.TemporaryDirectory() as folder:
        source, exports = Path(folder) / "it.S", Path(folder) / "it.map"
        source.write_text("\n".join(lines))
        exports.write_text("".join(script))
        options = [f"-Wl,--version-script={exports}"] if script else []
        command = ["gcc", "-shared", "-nostdlib", f"-Wl,-soname,{library.name}", *options]
        subprocess.run([*command, "-o", str(library), str(source)], check=True)


if __name__ == "__main__":
    main()
