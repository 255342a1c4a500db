"""Keys of a federation, for the user of its containers to read."""

from pathlib import Path

from docker_engine import SITES, TAG, USER, docker

from deployment.federation_file import FederationFile
from deployment.provision import Kits


def new_kits(folder: Path) -> Kits:
    """A federation's keys, for containers' user to read."""
    content = {"name": "chest", "server": {"host": "server", "port": 8000}, "sites": SITES}
    content["make_site_keys"] = True
    made = Kits(FederationFile.model_validate(content), folder / "chest")
    list(made.make())
    give_to_containers(made.folder)
    return made


def give_to_containers(folder: Path) -> None:
    """Makes the containers' user the owner of all keys in a folder, which takes root."""
    script = f"find /keys -name '*.key' -exec chown {USER}:{USER} {{}} +"
    image = f"fed-mediffusion-site:{TAG}"
    mount = ("--user", "0", "--volume", f"{folder}:/keys", "--entrypoint", "sh")
    docker("run", "--rm", *mount, image, "-c", script)
