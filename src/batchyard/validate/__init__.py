"""Check the `params` of one request: the part of the contract that is decided at run time.

The same code serves the worker, which turns a problem into an `errored` line without a call, and
the run, which shows it before anything is sent. A request that passes is forwarded byte for byte;
top-level keys that we do not know are the upstream's business.

One typed decode answers "fine" for an ordinary request in a few microseconds (`ordinary`). Every
other request is decoded whole and looked at rule by rule, in the words of the hosted API
(`rules`). Where those are not known, a message is `<path>: <text>`.

A model that is not in the table of models, or is marked `generic` there, follows the generic
rules: only what every Messages endpoint must refuse, and what batches refuse, is refused.
"""

from batchyard.validate.decide import check, examine, model_of
from batchyard.validate.ordinary import is_fine as is_plain
from batchyard.validate.ordinary import read as read_ordinary
from batchyard.validate.problem import Problem
from batchyard.validate.rules import KNOWN as KNOWN_MEMBERS
from batchyard.validate.tools import FORCED as FORCED_CHOICES
from batchyard.validate.urls import names_url

__all__ = [
    "FORCED_CHOICES",
    "KNOWN_MEMBERS",
    "Problem",
    "check",
    "examine",
    "is_plain",
    "model_of",
    "names_url",
    "read_ordinary",
]
