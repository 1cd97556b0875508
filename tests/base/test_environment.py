"""Which packages a record names."""

from __future__ import annotations

from types import SimpleNamespace

from clipq import environment


def test_the_onnxruntime_that_is_imported_is_recorded(tmp_path, monkeypatch):
    """Both packages may be installed, into one folder; the last one's files are what is imported."""
    (tmp_path / "capi").mkdir()
    info = tmp_path / "capi" / "build_and_package_info.py"
    info.write_text("package_name = 'onnxruntime-gpu'\n__version__ = '1.31.1'\ncuda_version = '13.0'\n")
    found = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(environment, "find_spec", lambda name: found)
    monkeypatch.setattr(environment, "version", lambda name: "0")
    packages = environment.environment()["packages"]
    assert packages["onnxruntime-gpu"] == "1.31.1" and "onnxruntime" not in packages
    info.unlink()
    assert environment.onnxruntime_package() is None


def test_it_is_what_python_imports():
    import onnxruntime

    assert environment.onnxruntime_package()[1] == onnxruntime.__version__


def test_nvidias_libraries_are_recorded(monkeypatch):
    names = ["nvidia-cublas", "nvidia-cudnn-cu13", "nvidia-cuda-cupti-cu12", "nvidia-modelopt", "torch", None]
    monkeypatch.setattr(environment, "distributions", lambda: [SimpleNamespace(metadata={"Name": n}) for n in names])
    environment._nvidia_packages.cache_clear()
    assert environment._nvidia_packages() == ["nvidia-cublas", "nvidia-cuda-cupti-cu12", "nvidia-cudnn-cu13"]
    environment._nvidia_packages.cache_clear()
