"""The stage keeps the promises of its kind."""

from kdq_my_plugin.my_plugin import MyPlugin

from kdq_core.testing import check_stage


def test_my_plugin_keeps_its_promises():
    fit = {"epochs": 2, "batch_size": 256}
    workload = {"use": "digits", "options": {"teacher_width": 4, "student_width": 4}}
    stages = ["train_teacher", "distill"]  # those that run before it
    check_stage(MyPlugin(), {"workload": workload, "teacher": {"fit": fit}, "distill": {"fit": fit}, "stages": stages})
