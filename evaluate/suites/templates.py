"""Prompt templates: which set a view is classified with."""

from __future__ import annotations

from dataclasses import dataclass

from clipq.bundle import Bundle
from clipq.data.views import View
from clipq.errors import DataError
from clipq.evaluate.published.table import templates_digest
from clipq.evaluate.suites.schema import Suite
from clipq.given import hint

DEFAULT_TEMPLATES = "imagenet-80"


@dataclass(frozen=True)
class TemplateSet:
    """Prompt templates with the name they go by; ``{}`` stands for the class name."""

    name: str
    templates: tuple[str, ...]

    def prompts(self, class_names: tuple[str, ...]) -> list[str]:
        """All prompts, class by class, the templates of a class in a row."""
        return [template.replace("{}", name) for name in class_names for template in self.templates]


def asked_on(view: View, bundle: Bundle, suite: Suite) -> dict[str, str]:
    """SHA-256 of what a bundle is asked on a view besides its images, by what it is: annotations and templates."""
    if view.classes is None:
        return view.annotations
    templates = choose_templates(view, bundle, suite.templates_of(view.name)).templates
    return {**view.annotations, "templates": templates_digest(templates)}


def choose_templates(view: View, bundle: Bundle, asked: str | None) -> TemplateSet:
    """The set asked for by name; else the data set's own templates; else open_clip's 80 for ImageNet."""
    known = bundle.prompts.templates
    if asked is not None:
        if asked not in known:
            raise DataError(f"--templates {asked!r}: the bundle has {', '.join(known)}{hint(asked, known)}")
        return TemplateSet(asked, known[asked])
    if view.classes is not None and view.classes.templates is not None:
        return TemplateSet("data set's own", view.classes.templates)
    return TemplateSet(DEFAULT_TEMPLATES, known[DEFAULT_TEMPLATES])
