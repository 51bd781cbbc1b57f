"""The example workers that `posthouse demo` runs: links to examples/, so that a wheel has them."""
