"""What the tests of the corrected losses share."""

import pytest

from noisylightning.kernels import fused


@pytest.fixture(scope="module", params=["kernel", "steps"])
def way(request):
    """Everything holds with the compiled kernel and without it."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "steps":
            patch.setattr(fused, "kernel", None)
        elif fused.kernel is None:
            pytest.skip("the package was installed without a C++ compiler")
        yield
