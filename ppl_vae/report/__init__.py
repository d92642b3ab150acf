"""Figures, tables and one HTML page, each written whole or not at all."""

from ppl_vae.report.codes import code_figure, code_maps
from ppl_vae.report.figures import (
    Curve,
    image_grid,
    image_rows,
    kl_curves,
    learning_curves,
    manifold_figure,
    reconstruction_grid,
    side_by_side,
)
from ppl_vae.report.files import environment, markdown_table, write_bytes, write_csv, write_json
from ppl_vae.report.films import alignment_figure, film_gif, film_strip, flip_grid
from ppl_vae.report.page import Section, html_page
from ppl_vae.report.results import comparison_files, pictures
from ppl_vae.report.scatter import class_scatter

__all__ = [
    "Curve",
    "Section",
    "alignment_figure",
    "class_scatter",
    "code_figure",
    "code_maps",
    "comparison_files",
    "environment",
    "film_gif",
    "film_strip",
    "flip_grid",
    "html_page",
    "image_grid",
    "image_rows",
    "kl_curves",
    "learning_curves",
    "manifold_figure",
    "markdown_table",
    "pictures",
    "reconstruction_grid",
    "side_by_side",
    "write_bytes",
    "write_csv",
    "write_json",
]
