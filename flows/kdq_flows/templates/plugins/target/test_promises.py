"""The target keeps the promises of its kind."""

from kdq_my_plugin.my_plugin import MyPlugin

from kdq_core.testing import check_target


def test_my_plugin_keeps_its_promises():
    check_target(MyPlugin())
