"""``dmi-node``: ``run`` is the daemon; every other verb is a user of the SDK like any other, in ``dmi_node.cli``."""

from dmi_node.cli.main import main

if __name__ == "__main__":
    main()
