"""The name that `store.manifest` had before; scripts of earlier versions import it from here."""

from tokenunify.store.manifest import content, content_hash, file_sha256, read, write

__all__ = ["content", "content_hash", "file_sha256", "read", "write"]
