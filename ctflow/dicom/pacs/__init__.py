"""A picture archive over the DICOM network protocol: find, pull and push; needs the extra `pacs`."""

from ctflow.dicom.pacs.peer import Peer, Tls
from ctflow.dicom.pacs.query import Query, find
from ctflow.dicom.pacs.retrieve import LISTEN, pull
from ctflow.dicom.pacs.store import push

__all__ = ["LISTEN", "Peer", "Query", "Tls", "find", "pull", "push"]
