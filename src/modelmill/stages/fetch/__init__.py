"""Check what the outside world delivered and write it down in the mill's own form.

The entrypoint has pulled the pinned sources into `inputs`; nothing here knows stores or model
libraries.
"""

from modelmill.spec.settings import (
    FetchAdapterSettings,
    FetchDataSettings,
    FetchModelSettings,
    FetchTestSettings,
    FetchTextSettings,
)
from modelmill.stages.fetch.data import fetch_data, fetch_test, fetch_text
from modelmill.stages.fetch.models import fetch_adapter, fetch_model
from modelmill.stages.stage import Folders, Outcome, Pulse


def run(
    settings: FetchModelSettings
    | FetchDataSettings
    | FetchTestSettings
    | FetchAdapterSettings
    | FetchTextSettings,
    folders: Folders,
    pulse: Pulse,
) -> Outcome:
    """Fetch a model, an adapter, training rows, test rows or a text to calibrate on."""
    match settings:
        case FetchModelSettings():
            return fetch_model(folders, pulse)
        case FetchDataSettings():
            return fetch_data(settings, folders, pulse)
        case FetchTestSettings():
            return fetch_test(settings, folders, pulse)
        case FetchAdapterSettings():
            return fetch_adapter(folders, pulse)
        case FetchTextSettings():
            return fetch_text(folders, pulse)
