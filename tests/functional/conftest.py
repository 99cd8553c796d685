"""What the tests of the corrected losses share."""

import pytest

from noisylightning.functional import _fused


@pytest.fixture(scope="module", params=["kernel", "steps"])
def way(request):
    """Everything holds with the compiled kernel and without it."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "steps":
            patch.setattr(_fused, "kernel", None)
        elif _fused.kernel is None:
            pytest.skip("the package was installed without a C++ compiler")
        yield
