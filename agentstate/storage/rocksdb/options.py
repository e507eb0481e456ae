"""Settings of the RocksDB backend, and what the engine calls them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import unquote

from pydantic import BaseModel, Field, field_validator

from agentstate.storage import registry

__all__ = ["DEFAULT_DIRECTORY", "RocksdbOptions", "driver", "engine_options"]

DEFAULT_DIRECTORY: Final = "agentstate.rocksdb"
URL_START: Final = "rocksdb:///"
KEPT_LOGS: Final = 5


class RocksdbOptions(BaseModel, extra="forbid", frozen=True):
    """Settings of the RocksDB backend.

    Attributes:
        url: ``rocksdb:///relative`` (from the working directory) or ``rocksdb:////absolute``: a directory.
        durability: ``full``: an acknowledged commit survives power loss; ``normal``: the death
            of the process.
        block_cache_size: bytes of memory for blocks of the files that were read.
        bloom_filter_bits: bits per key of the filters that spare a look into a file; 0: none.
        max_open_files: how many files the engine keeps open; -1: all.
        compression: of the files. Large values are compressed before they come here.
        compaction_style: ``level`` reads least, ``universal`` writes least.
    """

    url: str = URL_START + DEFAULT_DIRECTORY
    durability: Literal["full", "normal"] = "full"
    block_cache_size: int = Field(default=100_000_000, ge=0)
    bloom_filter_bits: int = Field(default=10, ge=0, le=64)
    max_open_files: int = Field(default=1000, ge=-1)
    compression: Literal["none", "snappy", "lz4", "zstd"] = "lz4"
    compaction_style: Literal["level", "universal"] = "level"

    @field_validator("url")
    @classmethod
    def _check_url(cls, url: str) -> str:
        path = url.removeprefix(URL_START)
        if path == url or not path.strip("/") or "?" in path or "#" in path or "\0" in unquote(path):
            raise ValueError(f"{url!r} is no RocksDB URL: write rocksdb:///directory, or rocksdb:////abs/directory")
        return url

    @property
    def path(self) -> Path:
        """The directory that the URL names."""
        return Path(unquote(self.url.removeprefix(URL_START)))


def driver() -> Any:
    """Return the module rocksdict, imported on first use.

    Raises:
        MissingDependencyError: it isn't installed.
    """
    return registry.driver("rocksdict", extra="rocksdb")


def engine_options(options: RocksdbOptions) -> Any:
    """Return the engine's options for ours."""
    rocks = driver()
    table = rocks.BlockBasedOptions()
    if options.block_cache_size:
        table.set_block_cache(rocks.Cache(options.block_cache_size))
    else:
        table.disable_cache()
    if options.bloom_filter_bits:
        table.set_bloom_filter(options.bloom_filter_bits, block_based=False)
    engine = rocks.Options(raw_mode=True)
    engine.create_if_missing(create_if_missing=True)
    engine.set_block_based_table_factory(table)
    engine.set_max_open_files(options.max_open_files)
    engine.set_compression_type(getattr(rocks.DBCompressionType, options.compression)())
    engine.set_compaction_style(getattr(rocks.DBCompactionStyle, options.compaction_style)())
    # A record that was cut off by a loss of power ends the log; any other damage of it is told, not skipped.
    engine.set_wal_recovery_mode(rocks.DBRecoveryMode.tolerate_corrupted_tail_records())
    engine.set_keep_log_file_num(KEPT_LOGS)
    return engine
