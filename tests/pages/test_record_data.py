"""What the page of a model shows about its training."""

from llmcli.pages import record_data
from llmcli.training.files.curve import Curve


def test_the_summary_of_a_curve() -> None:
    data = record_data._curve_data(Curve([1, 2000], [5.0, 0.2134999], [2, 1140], [0.5, 0.213499]))
    assert data["summary"] == (
        "The training loss went from 5.000 to 0.213 bits per byte by step 2,000; the lowest validation loss was 0.213."
    )
