"""A picture archive over the network, by DIMSE or DICOMweb (extras `pacs`, `dicomweb`)."""

from ctflow.dicom.pacs.address import peer_at
from ctflow.dicom.pacs.peer import Peer, Tls
from ctflow.dicom.pacs.query import Query, find
from ctflow.dicom.pacs.retrieve import LISTEN, pull
from ctflow.dicom.pacs.store import push
from ctflow.dicom.pacs.web_peer import WebPeer

__all__ = ["LISTEN", "Peer", "Query", "Tls", "WebPeer", "find", "peer_at", "pull", "push"]
