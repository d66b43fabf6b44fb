"""A picture archive over the DICOM network protocol: find, pull and push; needs the extra `pacs`."""

from ctflow.dicom.pacs.peer import Peer, Tls
from ctflow.dicom.pacs.query import Query, find
from ctflow.dicom.pacs.retrieve import pull
from ctflow.dicom.pacs.store import push

__all__ = ["Peer", "Query", "Tls", "find", "pull", "push"]
