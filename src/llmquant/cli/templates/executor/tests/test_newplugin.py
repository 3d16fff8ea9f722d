"""What llmquant requires of every executor, one line per check; real jobs take about a minute."""

import pytest
from llmquant.errors import OptionError
from llmquant.testing import checks

from llmquant_newplugin.plugin import NewPluginOptions, llmquant_register

(SPEC,) = llmquant_register()
test_contract = checks(SPEC, "newplugin(slots=2)")


def test_a_wrong_number_is_refused():
    """Before anything is started."""
    with pytest.raises(OptionError, match="slots is 0"):
        NewPluginOptions(slots=0)
