"""The report page: rollouts with their credit, and the curves of a run, in one HTML file.

rollouts.py   a rollout as the page shows it      charts.py   curves as SVG, with their numbers
run.py        what a run's folder adds            page.py     the file      watch.py   the same, served live
templates/    HTML, CSS and scripts of the page
"""
