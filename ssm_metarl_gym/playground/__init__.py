"""The playground: a page in the browser on which a motor is flipped while a policy runs, as it is and corrected.

    site      the page, in plain JavaScript: physics, policy, adaptation and correction as this package has them
    server    serves it on this machine
    training  makes the bundles that it shows, and the list of them
"""
