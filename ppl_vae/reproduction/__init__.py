"""Tables of the literature, trained again: a protocol as a file, its rows as run folders, a page beside the print."""

from ppl_vae.reproduction.budget import Budget
from ppl_vae.reproduction.errors import ErrorProtocol
from ppl_vae.reproduction.job import Job
from ppl_vae.reproduction.page import write_page
from ppl_vae.reproduction.protocol import Protocol, Published, Row, load_protocol, protocol_names
from ppl_vae.reproduction.run import reproduce

__all__ = [
    "Budget",
    "ErrorProtocol",
    "Job",
    "Protocol",
    "Published",
    "Row",
    "load_protocol",
    "protocol_names",
    "reproduce",
    "write_page",
]
