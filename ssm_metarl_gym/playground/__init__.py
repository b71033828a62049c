"""The playground: a page in the browser on which a motor is flipped while a policy runs, as it is and corrected.

The folder ``site`` is the page, in plain JavaScript: physics, policy, adaptation and correction as this package has
them. :mod:`server` serves it on this machine, and :mod:`training` makes the bundles that it shows.
"""
