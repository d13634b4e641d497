"""Runs whose method is a dict, as that of peft's tuners is, are told of by their name."""

from helpers import import_peft

from snella_seg.inject import method_name


def test_a_method_is_named_by_a_string_or_a_dict():
    assert method_name({}) == "snella" and method_name({"method": "lora"}) == "lora"
    assert method_name({"method": {"type": "peft", "config": "LoraConfig"}}) == "peft"


def test_a_run_of_peft_is_reported(tool, tiny_config_file, tmp_path):
    import_peft()
    config = tiny_config_file.with_name("peft.py")
    config.write_text(
        f"_base_ = './{tiny_config_file.name}'\n"
        "model = dict(backbone=dict(method=dict(type='peft', config='LoraConfig', r=4),\n"
        "                           adapter=None))\n"
    )
    done = tool("train", config, "--work-dir", tmp_path / "run")
    assert done.code == 0, done.err
    done = tool("report", tmp_path / "run")
    assert done.code == 1 and "its method, PEFT, allocates no budget" in done.err
