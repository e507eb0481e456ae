"""Each setting of the Valkey backend is read from where it is written, and arrives at the server."""

import datetime as dt
import ipaddress
import socket
import ssl

import pytest

from agentstate.errors import ConfigError, MissingDependencyError, StorageUnavailableError
from agentstate.scope import StateScope
from agentstate.storage import registry
from agentstate.storage.protocol import LeaseRequest
from agentstate.storage.valkey import ValkeyOptions, ValkeyStorage
from agentstate.storage.valkey.scripts import script
from agentstate.testing.turns import EVERYTHING
from tests.servers import Proxy, ValkeyServer, free_port


async def client_of(storage, server):
    """Return what the server says of the storage's connections."""
    await storage.ping()
    lines = server.ask("CLIENT", "LIST").decode().splitlines()
    fields = [dict(pair.split("=", 1) for pair in line.split(" ")) for line in lines]
    return [one for one in fields if one["name"] == storage.options.client_name]


@pytest.fixture
async def make(valkey_prefix):
    """Return a maker of storages that are closed at the end."""
    made = []

    def make(url, **settings):
        made.append(ValkeyStorage(url, key_prefix=valkey_prefix, **settings))
        return made[-1]

    yield make
    for one in made:
        await one.close()


class TestUrl:
    """What a URL says."""

    def test_everything_in_the_url(self):
        """User, password, host, port, database and query are settings like any other."""
        options = ValkeyOptions(url="valkeys://ada:p%40ss@example.org:7000/3?max_connections=4&ssl_ca_certs=/ca.pem")
        assert (options.username, options.password.get_secret_value(), options.db) == ("ada", "p@ss", 3)
        assert (options.address, options.tls) == (("example.org", 7000), True)
        assert (options.max_connections, options.ssl_ca_certs) == (4, "/ca.pem")

    def test_keywords_win(self):
        """A keyword wins over the URL's part that says the same."""
        options = ValkeyOptions(url="redis://a:b@h/1?socket_timeout=9", username="c", password="d", db=2)
        assert (options.username, options.password.get_secret_value(), options.db) == ("c", "d", 2)
        assert options.socket_timeout == 9

    @pytest.mark.parametrize(
        ("url", "address", "tls"),
        [
            ("valkey://h", ("h", 6379), False),
            ("redis://h:1", ("h", 1), False),
            ("valkeys://h", ("h", 6379), True),
            ("rediss://[::1]:5", ("::1", 5), True),
            ("unix:///run/v.sock?db=2", "/run/v.sock", False),
            ("valkey://", ("localhost", 6379), False),
        ],
    )
    def test_schemes(self, url, address, tls):
        """Each scheme names the same server as in other clients."""
        options = ValkeyOptions(url=url)
        assert (options.address, options.tls) == (address, tls)

    def test_the_password_is_never_shown(self):
        """Neither the location nor the representation nor an error shows the password."""
        storage = ValkeyStorage("valkey://ada:s3cret@127.0.0.1:1/2?password=s3cret")
        assert storage.location == "valkey://ada@127.0.0.1:1/2"
        assert "s3cret" not in repr(storage.options) + str(storage.options) + storage.options.url
        with pytest.raises(ConfigError) as caught:
            ValkeyStorage("valkey://ada:s3cret@h:port")
        assert "s3cret" not in str(caught.value)

    @pytest.mark.parametrize(
        ("url", "settings", "said"),
        [
            ("valkey://h?max_conections=4", {}, "max_connections"),
            ("valkey://h", {"max_conections": 4}, "max_connections"),
            ("valky://h", {}, "valkey"),
            ("valkey://h/x", {}, "db"),
            ("valkey://h:x", {}, "port"),
            ("valkey://h", {"key_prefix": "a{b}"}, "brace"),
            ("valkey://h", {"socket_timeout": 0}, "socket_timeout"),
            ("unix://", {}, "path"),
        ],
    )
    def test_bad_settings(self, url, settings, said):
        """A setting that is unknown or wrong is named, with the nearest name there is."""
        with pytest.raises(ConfigError, match=said):
            ValkeyStorage(url, **settings)

    def test_through_the_registry(self):
        """The registry makes the same storage from the same settings."""
        storage = registry.create("valkey", {"url": "valkey://h:1/5?max_connections=3", "key_prefix": "x:"})
        assert isinstance(storage, ValkeyStorage)
        assert (storage.options.db, storage.options.max_connections, storage.options.key_prefix) == (5, 3, "x:")

    async def test_missing_driver(self, monkeypatch):
        """Without the driver a storage can be made, and says on first use how to install it."""
        monkeypatch.setitem(__import__("sys").modules, "libvalkey", None)
        storage = ValkeyStorage()
        with pytest.raises(MissingDependencyError, match=r"agentstate-suite\[valkey\]"):
            await storage.open()


class TestArrival:
    """Each setting, as the server or the socket sees it."""

    async def test_database_and_name(self, make, valkey_server):
        """The database and the client's name are those that were set."""
        (client,) = await client_of(make(f"{valkey_server.url}/3", client_name="db-and-name"), valkey_server)
        assert (client["db"], client["name"]) == ("3", "db-and-name")

    async def test_unknown_database(self, make, valkey_server):
        """A database that the server doesn't have is a wrong setting."""
        with pytest.raises(ConfigError, match="databases"):
            await make(f"{valkey_server.url}/99").open()

    async def test_user_and_password(self, make, valkey_server):
        """The user that was set is the one that logs in, also on the blocking connection."""
        valkey_server.ask("ACL", "SETUSER", "ada", "on", ">s3cret", "~*", "&*", "+@all")
        storage = make(valkey_server.url, username="ada", password="s3cret", client_name="as-ada")
        (client,) = await client_of(storage, valkey_server)
        assert client["user"] == "ada"
        storage._connections.link.run_all(script("failures"), [(b"a{1}state:x", ("",))])
        assert [one["user"] for one in await client_of(storage, valkey_server)] == ["ada", "ada"]

    @pytest.mark.parametrize("kept", [True, False])
    async def test_keepalive(self, make, valkey_server, kept):
        """The socket has the keepalive option that was set, and never delays small packets."""
        storage = make(valkey_server.url, socket_keepalive=kept)
        await storage.open()
        sock = next(iter(storage._connections.found().route.nodes())).pipeline._sock
        assert bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)) == kept
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)

    @pytest.mark.parametrize(("allowed", "used"), [(1, 1), (2, 2), (10, 2)])
    async def test_connections(self, make, valkey_server, allowed, used):
        """No more connections are made than were allowed, whatever is waited for."""
        storage = make(valkey_server.url, max_connections=allowed, client_name=f"most-{allowed}")
        scope = StateScope.conversation("c")
        for nonce in (1, 2):
            await storage.read(scope, EVERYTHING, lease=LeaseRequest(nonce, 30.0, "h"))
        await storage.wait_turn(scope, 2, 0.05)
        assert len(await client_of(storage, valkey_server)) == used
        assert storage.capabilities.push == (used > 1)

    async def test_socket_timeout(self, make, valkey_prefix):
        """A reply that takes longer than was allowed is an error that says so."""
        with ValkeyServer() as server:
            storage = make(server.url, socket_timeout=0.2)
            await storage.open()
            server.ask("CLIENT", "PAUSE", 600, "ALL")
            with pytest.raises(StorageUnavailableError, match=r"no reply in 0\.2 s"):
                await storage.ping()

    async def test_retry_on_timeout(self, make):
        """With ``retry_on_timeout`` a read that took too long is tried once more."""
        with ValkeyServer() as server:
            storage = make(server.url, socket_timeout=0.3, retry_on_timeout=True)
            await storage.open()
            server.ask("CLIENT", "PAUSE", 450, "ALL")
            await storage.ping()

    async def test_connect_timeout(self, make):
        """A server that accepts and never answers is given up in time."""
        with socket.create_server(("127.0.0.1", 0)) as silent:
            storage = make(f"valkey://127.0.0.1:{silent.getsockname()[1]}", socket_connect_timeout=0.2)
            with pytest.raises(StorageUnavailableError, match=r"no answer in 0\.2 s"):
                await storage.open()

    async def test_unix_socket(self, make, tmp_path):
        """A Unix socket serves as well as a port."""
        path = tmp_path / "v.sock"
        with ValkeyServer(unixsocket=path) as server:
            storage = make(f"unix://{path}?db=1", client_name="by-socket")
            (client,) = await client_of(storage, server)
            assert client["db"] == "1"
            assert str(path) in client["addr"]


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """Return the paths of an authority's certificate, a server's certificate and its key."""
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    who = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "agentstate test")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder(who, who, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    folder = tmp_path_factory.mktemp("tls")
    (folder / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private = (serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "key.pem").write_bytes(key.private_bytes(serialization.Encoding.PEM, *private))
    return folder / "cert.pem", folder / "key.pem"


class TestTls:
    """TLS, ended by a proxy: the bundled server is built without it."""

    @pytest.fixture
    def proxy(self, valkey_server, certificates):
        """Return a TLS front of the server that demands the client's certificate, too."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=certificates[0])
        context.load_cert_chain(*certificates)
        context.verify_mode = ssl.CERT_REQUIRED
        with Proxy(valkey_server.port, tls=context) as made:
            yield made

    async def test_all_files(self, make, proxy, certificates):
        """Authority, certificate and key are used, on both kinds of connection."""
        cert, key = map(str, certificates)
        files = {"ssl_ca_certs": cert, "ssl_certfile": cert, "ssl_keyfile": key}
        storage = make(f"valkeys://127.0.0.1:{proxy.port}", **files)
        await storage.ping()
        assert storage._connections.link.run_all(script("failures"), [(b"a{1}state:x", ("",))])
        assert proxy.connections == 2

    async def test_unknown_authority(self, make, proxy):
        """A certificate of an authority that isn't trusted is refused."""
        with pytest.raises(StorageUnavailableError, match=r"(?i)certificate"):
            await make(f"rediss://127.0.0.1:{proxy.port}").open()

    async def test_host_name(self, make, proxy, certificates):
        """A certificate for another host is refused unless that was switched off."""
        cert, key = map(str, certificates)
        files = {"ssl_ca_certs": cert, "ssl_certfile": cert, "ssl_keyfile": key}
        with pytest.raises(StorageUnavailableError, match=r"(?i)hostname"):
            await make(f"valkeys://localhost:{proxy.port}", **files).open()
        await make(f"valkeys://localhost:{proxy.port}?ssl_check_hostname=false", **files).ping()

    async def test_wrong_files(self, make, tmp_path):
        """A file that can't be read is a wrong setting, found before anything is connected."""
        with pytest.raises(ConfigError, match="ssl_ca_certs"):
            await make(f"valkeys://127.0.0.1:{free_port()}", ssl_ca_certs=str(tmp_path / "none.pem")).open()

    async def test_plain_server(self, make, valkey_server):
        """A server without TLS is an error, not a plain connection."""
        with pytest.raises(StorageUnavailableError):
            await make(valkey_server.url.replace("valkey:", "valkeys:"), socket_connect_timeout=1).open()
