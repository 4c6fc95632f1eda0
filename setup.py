"""Packaging: ``runtime/`` installs as ``ds2ds`` and ``kernels/`` as ``ds2ds.kernels``."""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
SERVER = ["fastapi>=0.115", "pydantic>=2.8", "uvicorn>=0.30", "prometheus-client>=0.20"]

setup(
    name="ds2ds",
    version="0.1.0",
    description="Fast decoding for document-graph language models",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.11",
    package_dir={"ds2ds": "runtime", "ds2ds.kernels": "kernels"},
    packages=[
        "ds2ds",
        *(f"ds2ds.{name}" for name in find_packages("runtime")),
        "ds2ds.kernels",
        *(f"ds2ds.kernels.{name}" for name in find_packages("kernels")),
    ],
    package_data={
        "ds2ds": [
            "py.typed",
            "data/*/*",
            "data/*/*/*",
            "native/*.c",
            "native/*.h",
            "pictures/assets/*",
            "server/page/assets/*",
        ]
    },
    install_requires=[
        "torch>=2.11",
        "numpy>=1.26",
        "tiktoken>=0.7",
        "rapidfuzz>=3",
        "safetensors>=0.4",
        "rich>=13",
        "typer>=0.12",
        "click>=8",
        "pyyaml>=6",
        "markdown-it-py>=3",
        'triton>=3.6; platform_system == "Linux"',
    ],
    extras_require={
        "server": SERVER,
        "test": [
            "pytest>=8",
            "pytest-benchmark>=4",
            "pytest-xdist>=3",
            "hypothesis>=6",
            "scipy>=1.11",
            "matplotlib>=3.9",
            # Of what is tested against, or adapted to:
            "transformers>=5",
            "lm_eval[api]>=0.4.9",
            "pylatexenc>=2.10,<3",
            "wikitextparser>=0.55",
            *SERVER,
            "httpx>=0.27",
            "openai>=1.50",
            "schemathesis>=4",
            # The notebooks:
            "nbclient>=0.10",
            "nbformat>=5.10",
            "ipykernel>=6.29",
            "playwright>=1.49",
        ],
        # For systems without a C compiler:
        "compiler": ["ziglang>=0.13"],
        "pictures": ["matplotlib>=3.9"],
        "embeddings": ["sentence-transformers>=3"],
        "eval": ["lm_eval>=0.4.9"],
        "lint": ["ruff", "mypy"],
        "docs": ["mkdocs-material>=9.5", "mkdocstrings[python]>=0.26"],
        "bench": ["transformers>=5", "pytest-benchmark>=4", "scipy>=1.11", "ctranslate2>=4"],
    },
    entry_points={"console_scripts": ["ds2ds=ds2ds.__main__:main"]},
)
