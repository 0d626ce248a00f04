"""Policy files: what is read, what is printed, and which line an error names."""

from __future__ import annotations

import io
import os
from pathlib import Path

import msgspec
import pytest
from hypothesis import given

from linkspan.core.errors import Invalid, NotFound
from linkspan.policy import document, yaml_nodes
from linkspan.policy.model import Peer, Policy, Ports, Requirement, Rule, Selector
from support import policies as samples

FULL = """\
policy: web
order: 10
select:
  network: [shop, test]
  labels: {app: web}
  expressions:
  - {key: tier, operator: In, values: [front]}
ingress:
- from:
  - labels: {app: proxy}
  - cidr: 192.0.2.0/24
    except: [192.0.2.7]
  - outside
  ports: [80, 8000-8010/udp, icmp, echo-request/ICMP]
- action: deny
egress: []
tests:
- {from: proxy, to: {network: shop, labels: {app: web}}, port: 80, expect: allow}
"""


def test_everything_of_a_policy_is_read() -> None:
    """With the line of each rule, and the tests beside it."""
    found = document.parsed(FULL, "web.yaml")
    assert found.policies == (
        Policy(
            name="web",
            order=10,
            select=Selector(
                networks=("shop", "test"),
                labels={"app": "web"},
                expressions=(Requirement("tier", "In", ("front",)),),
            ),
            ingress=(
                Rule(
                    peers=(
                        Peer(select=Selector(labels={"app": "proxy"})),
                        Peer(cidr="192.0.2.0/24", excepts=("192.0.2.7",)),
                        Peer(outside=True),
                    ),
                    ports=(Ports("tcp", 80, 80), Ports("udp", 8000, 8010), Ports("icmp"), Ports("icmp", 8, 8)),
                    line=9,
                ),
                Rule(action="deny", line=15),
            ),
            egress=(),
            file="web.yaml",
            line=1,
        ),
    )
    (case,) = found.cases
    assert (case.source.name, case.target.network, case.port, case.expect, case.line) == (
        "proxy", "shop", "80", "allow", 18,
    )  # fmt: skip


KUBERNETES = """\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: shop, labels: {team: a}}
spec:
  podSelector: {matchLabels: {app: web}}
  policyTypes: [Ingress, Egress]
  ingress:
  - from:
    - podSelector: {}
    - namespaceSelector: {}
      podSelector: {matchExpressions: [{key: app, operator: Exists}]}
    - namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: test}}
    - ipBlock: {cidr: 192.0.2.0/24, except: [192.0.2.0/28]}
    ports:
    - {port: 80, endPort: 90}
    - {protocol: UDP}
"""


def test_a_network_policy_of_kubernetes_is_read() -> None:
    """A namespace is the network of its name, and what policyTypes names and spec lacks is closed."""
    (found,) = document.parsed(KUBERNETES, "k.yaml").policies
    assert found == Policy(
        name="shop.web",
        select=Selector(labels={"app": "web"}, networks=("shop",)),
        ingress=(
            Rule(
                peers=(
                    Peer(select=Selector(networks=("shop",))),
                    Peer(select=Selector(expressions=(Requirement("app", "Exists"),))),
                    Peer(select=Selector(networks=("test",))),
                    Peer(cidr="192.0.2.0/24", excepts=("192.0.2.0/28",)),
                ),
                ports=(Ports("tcp", 80, 90), Ports("udp")),
                line=8,
            ),
        ),
        egress=(),
        file="k.yaml",
        line=1,
    )


CLUSTER = """\
apiVersion: policy.networking.k8s.io/v1beta1
kind: ClusterNetworkPolicy
metadata: {name: guard}
spec:
  tier: Admin
  priority: 7
  subject:
    pods:
      namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: shop}}
      podSelector: {matchLabels: {app: web}}
  ingress:
  - name: monitoring
    action: Accept
    from: [{namespaces: {matchLabels: {kubernetes.io/metadata.name: watch}}}]
    protocols: [{tcp: {destinationPort: {number: 9100}}}, {udp: {destinationPort: {range: {start: 1, end: 9}}}}]
  - {action: Pass, from: [{pods: {namespaceSelector: {}, podSelector: {}}}]}
  egress:
  - {action: Deny, to: [{networks: [192.0.2.0/24, '2001:db8::/32']}, {namespaces: {}}]}
"""


def test_a_cluster_network_policy_is_one_of_a_tier() -> None:
    """Above the usual ones or below them; its priority is its order there, and its name its own."""
    (policy,) = document.parsed(CLUSTER, "c.yaml").policies
    assert policy == Policy(
        name="guard",
        tier="admin",
        order=7,
        select=Selector(networks=("shop",), labels={"app": "web"}),
        ingress=(
            Rule(
                peers=(Peer(select=Selector(networks=("watch",))),),
                ports=(Ports("tcp", 9100, 9100), Ports("udp", 1, 9)),
                line=12,
            ),
            Rule(action="pass", peers=(Peer(select=Selector()),), line=16),
        ),
        egress=(
            Rule(
                action="deny",
                peers=(Peer(cidr="192.0.2.0/24"), Peer(cidr="2001:db8::/32"), Peer(select=Selector())),
                line=18,
            ),
        ),
        file="c.yaml",
        line=1,
    )
    (below,) = document.parsed(CLUSTER.partition("  ingress")[0].replace("Admin", "Baseline"), "").policies
    assert (below.tier, below.ingress, below.egress) == ("baseline", None, None)


def test_an_empty_list_of_egress_closes_nothing_without_policy_types() -> None:
    """Kubernetes' defaults add Egress only for a list that has items."""
    (empty,) = document.parsed(f"{HEAD}  egress: []\n", "").policies
    assert (empty.ingress, empty.egress) == ((), None)
    (some,) = document.parsed(f"{HEAD}  egress: [{{}}]\n", "").policies
    assert some.egress is not None


NOWHERE = "{matchExpressions: [{key: kubernetes.io/metadata.name, operator: In, values: []}]}"
HEAD = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: a}\nspec:\n  podSelector: {}\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("policy: [", "f line 2 is no YAML"),
        ("policy: &a web\norder: *a\n", "f line 2 has an alias"),
        ("[" * 40 + "]" * 40, "f line 1 is nested more than 32 levels deep"),
        ("policy: web\npolicy: web\n", "f line 2 has the key 'policy' a second time"),
        ("policy: web\ningres: []\n", "f line 2 has the key 'ingres', which a policy does not have"),
        ("policy: web\n# \u00e9\n# \0\n", "f line 3 has the character #x0000, which YAML does not allow"),
        ("policy: web\ningress:\n- action: allow\n  to: [outside]\n", "f line 4 has the key 'to', which a rule of ing"),
        ("policy: web\n", "f line 1 begins a policy that says nothing"),
        ("order: 1\ningress: []\n", "f line 1 begins a policy without a name"),
        ("policy: a b\ningress: []\n", "'a b' is no name of a policy"),
        ("policy: w\norder: 70000\ningress: []\n", "policy w: its order is 70000"),
        ("policy: w\ningress:\n- action: allaw\n", "f line 3 has 'allaw' for an action"),
        ("policy: w\ningress:\n- from: []\n", "f line 3 has an empty list for from"),
        ("policy: w\ningress:\n- from: [inside]\n", "f line 3 has the peer 'inside'"),
        ("policy: w\ningress:\n- from: [{cidr: 192.0.2.1/24}]\n", "line 3: 192.0.2.1/24 has bits after its length"),
        ("policy: w\ningress:\n- from: [{cidr: 192.0.2.0/24, except: [10.0.0.0/8]}]\n", "10.0.0.0/8 is not within"),
        ("policy: w\ningress:\n- ports: [http]\n", "f line 3: 'http' is no port"),
        ("policy: w\ningress:\n- ports: [99999999999999999999]\n", "f line 3: '9999"),
        ("policy: w\ningress:\n- ports: [90-80]\n", "f line 3: '90-80' is no port"),
        ("policy: w\ningress: []\ntests:\n- {from: a, to: b}\n", "f line 4 begins a test without expect"),
        ("policy: w\ningress: []\ntests:\n- {from: a, to: {labels: {}}, expect: deny}\n", "without network"),
        ("kind: Pod\napiVersion: v1\n", "f line 1 begins an object of kind Pod of v1"),
        ("policy: w\ntier: top\ningress: []\n", "f line 2 has 'top' for a tier"),
        ("policy: w\ningress:\n- action: pass\n", "line 3: pass needs a tier"),
        ("policy: w\ningress: []\ntests:\n- {from: a, to: b, expect: pass}\n", "f line 4 has 'pass' for expect"),
        (CLUSTER.replace("Admin", "Top"), "f line 5 has the tier 'Top'"),
        (CLUSTER.replace("Pass", "Skip"), "f line 16 has the action 'Skip'"),
        (CLUSTER.replace("networks:", "domainNames:"), "f line 18 has a name that means nobody"),
        (CLUSTER.replace("pods:", "domainNames:", 1), "f line 8"),
        ("policy: w\negress:\n- to: [{dns: [192.0.2.7]}]\n", "has a name that means nobody: '192.0.2.7' is an"),
        ("policy: w\negress:\n- to: [{dns: [api]}]\n", "f line 3 has a name that means nobody: 'api' has no domain"),
        ("policy: w\negress:\n- to: [{dns: [a.b], cidr: 192.0.2.0/24}]\n", "line 3 has the key 'cidr', which a peer"),
        ("policy: w\ningress:\n- from: [{dns: [a.example.com]}]\n", "line 3: an ingress rule names no client by DNS"),
        ("policy: w\negress:\n- {action: deny, to: [{dns: [a.example.com]}]}\n", "line 3: a rule with deny has no DNS"),
        ("policy: w\negress:\n- to: [{dns: }]\n", "f line 3 has no value for dns"),
        ("policy: w\ningress:\n- from:\n  ports: [80]\n", "f line 3 has no value for from"),
        ("policy: w\ningress:\n- from: [outside]\n  ports:\n", "f line 4 has no value for ports"),
        ("policy: w\ningress:\n- {from: [outside], ports: []}\n", "f line 3 has an empty list for ports"),
        ("policy: w\ningress:\n- from: [{labels: }]\n", "f line 3 has no value for labels"),
        ("policy: w\ningress:\n- from: [{network: []}]\n", "f line 3 has an empty list for network"),
        ("policy: w\ningress:\n- from: [{cidr: }]\n", "f line 3 has no value for cidr"),
        ("policy: w\nselect:\ningress: []\n", "f line 2 has no value for select"),
        ("policy: w\nselect: {name: []}\ningress: []\n", "f line 2 has an empty list for name"),
        (CLUSTER.replace("podSelector: {matchLabels: {app: web}}", "nodes: {}"), "f line 10 has the key 'nodes'"),
        (CLUSTER.replace("from: [{pods", "to: [{pods"), "f line 16 has the key 'to', which a rule does not have"),
        (CLUSTER.replace("protocols: [{tcp", "protocols: # [{tcp"), "f line 15 has no value for protocols"),
        (CLUSTER.replace("protocols: [{tcp", "protocols: [] # [{tcp"), "f line 15 has an empty list for protocols"),
        (CLUSTER.replace("{number: 9100}", ""), "f line 15 has no value for destinationPort"),
        (CLUSTER.replace("start: 1, ", ""), "f line 15 begins a range without start"),
        (CLUSTER.replace("{namespaceSelector: {}, podSelector: {}}", "{}"), "line 16 begins pods without namespaceS"),
        (CLUSTER.replace("{}, podSelector: {}", "{}"), "f line 16 begins pods without podSelector"),
        (CLUSTER.replace("namespaceSelector: {}", "namespaceSelector: "), "f line 16 has no value for namespaceS"),
        (CLUSTER.replace("podSelector: {}", "podSelector: {matchLabels: }"), "f line 16 has no value for matchLabels"),
        (CLUSTER.replace("namespaces: {}", "namespaces: "), "f line 18 has no value for namespaces"),
        (CLUSTER.replace("[192.0.2.0/24, '2001:db8::/32']", "[]"), "f line 18 has an empty list for networks"),
        (CLUSTER.replace("[{namespaces: {matchLabels: {kubernetes.io/metadata.name: watch}}}]", "[]"), "list for from"),
        (CLUSTER.replace("number: 9100", "number: 0"), "f line 15 has the ports 0 to 0"),
        (f"{HEAD}  ingress: [{{ports: [{{port: 0}}]}}]\n", "f line 6 has the ports 0 to 0"),
        (f"{HEAD}  ingress: [{{ports: [{{port: http}}]}}]\n", "f line 6 has the named port 'http'"),
        (f"{HEAD}  ingress: [{{from: [{{namespaceSelector: {{matchLabels: {{a: b}}}}}}]}}]\n", "namespaces by labels"),
        (f"{HEAD}  ingress: [{{from: [{{ipBlock: {{cidr: 10.0.0.0/8}}, podSelector: {{}}}}]}}]\n", "an ipBlock beside"),
        (f"{HEAD}  ingress: [{{from: [{{podSelector: }}]}}]\n", "f line 6 has a peer that says nothing"),
        (f"{HEAD}  ingress: [{{from: [{{namespaceSelector: {NOWHERE}}}]}}]\n", "namespaces by labels"),
        (f"{HEAD}  policyTypes: [Both]\n", "f line 6 has the policy type 'Both'"),
    ],
)  # fmt: skip
def test_an_error_names_the_file_the_line_and_the_fix(text: str, words: str) -> None:
    """Nothing is guessed: what linkspan does not understand is refused."""
    with pytest.raises(Invalid) as refused:
        document.parsed(text, "f")
    assert words in refused.value.message
    assert "\n" not in str(refused.value), "an error is one line"


@pytest.mark.parametrize(
    ("text", "fix"),
    [
        ("policy: web\ningres: []\n", "did you mean ingress?"),
        ("policy: web\nrules: []\n", "use policy, tier, order, select, ingress, egress, tests"),
        ("policy: web\ningress: [{to: [outside]}]\n", "to belongs to egress, and ingress has from"),
        ("policy: web\negress: [{from: [outside]}]\n", "from belongs to ingress, and egress has to"),
        (f"{HEAD}  ingress: [{{to: []}}]\n", "to belongs to egress, and ingress has from"),
        ("policy: web\nselect: {labels: {app:web}}\ningress: []\n", "write a blank after the colon: app: web"),
        ("policy: web\ningress: [{action: reject}]\n", "write allow or deny, or, in a policy with a tier, pass"),
    ],
)
def test_a_mistake_is_told_with_what_was_probably_meant(text: str, fix: str) -> None:
    """A key that is nearly right, one of the other direction, a blank that is missing."""
    with pytest.raises(Invalid) as refused:
        document.parsed(text, "f")
    assert refused.value.hint == fix


@pytest.mark.parametrize(
    ("rule", "fix"),
    [
        ("from: []", "write at least one, or leave the key out"),
        ("ports: ", "write one, or leave the key out"),
        ("from: [{dns: []}]", "write at least one"),
        ("from: [{cidr: }]", "write one"),
        ("from: [{cidr: 10.0.0.0/8, except: []}]", "write at least one, or leave the key out"),
    ],
)
def test_the_fix_of_a_forgotten_value_says_whether_the_key_may_be_left_out(rule: str, fix: str) -> None:
    """A peer without its only key would mean every container."""
    with pytest.raises(Invalid) as refused:
        document.parsed(f"policy: w\ningress:\n- {{{rule}}}\n", "f")
    assert refused.value.hint == fix


def test_an_empty_mapping_is_no_forgotten_value() -> None:
    """It says that there is no condition, so it means every container, as in Kubernetes."""
    text = "policy: w\nselect: {}\ningress:\n- from: [{}]\n- from: [{labels: {}}]\n"
    (policy,) = document.parsed(text, "f").policies
    every = (Peer(select=Selector()),)
    assert (policy.select, policy.ingress) == (Selector(), (Rule(peers=every, line=4), Rule(peers=every, line=5)))


def test_what_is_null_in_a_network_policy_is_left_out() -> None:
    """As in Kubernetes, whose tools write such files: everybody may come, at every port."""
    (policy,) = document.parsed(f"{HEAD}  ingress: [{{from: , ports: }}]\n", "f").policies
    assert policy.ingress == (Rule(line=6),)


def test_a_folder_is_all_its_files_and_one_name_is_one_policy(tmp_path: Path) -> None:
    """Two policies of one name are refused with both places."""
    (tmp_path / "a.yaml").write_text("policy: a\ningress: []\n---\npolicy: b\negress: []\n")
    (tmp_path / "b.yml").write_text("policy: c\ningress: []\n")
    (tmp_path / "c.txt").write_text("policy: [")
    (tmp_path / "d.json").write_text('{"policy": "d", "ingress": []}')
    (tmp_path / "old").mkdir()
    (tmp_path / ".git").mkdir()
    found = document.read([tmp_path])
    assert [one.name for one in found.policies] == ["a", "b", "c", "d"]
    assert found.unread == (f"{tmp_path}/c.txt", f"{tmp_path}/old/")
    assert [one.name for one in document.read([tmp_path / "b.yml", tmp_path / "d.json"]).policies] == ["c", "d"]
    (tmp_path / "d.yaml").write_text("\npolicy: a\ningress: []\n")
    with pytest.raises(Invalid, match=r"policy a is there twice: a.yaml line 1 and d.yaml line 2"):
        document.read([tmp_path])
    with pytest.raises(NotFound, match="cannot be read"):
        document.read([tmp_path / "none.yaml"])


def test_a_dash_is_the_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors and records call it stdin."""
    for text, words in (("policy: a\ningress: []\n", ""), ("policy: a\ningres: []\n", "stdin line 2 has the key")):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        if words:
            with pytest.raises(Invalid, match=words):
                document.read([document.STDIN])
        else:
            assert [(one.name, one.file) for one in document.read([Path("-")]).policies] == [("a", "stdin")]


def test_a_direction_without_rules_is_closed_however_it_is_written() -> None:
    """A list that is empty, or has not been written yet: other keys without a value are refused."""
    (policy,) = document.parsed("policy: w\ningress: []\negress:\n", "f").policies
    assert (policy.ingress, policy.egress) == ((), ())


def test_a_name_of_a_file_moves_no_terminal_and_fits_into_json(tmp_path: Path) -> None:
    """Errors, `diff` and the policy's record name it, and names of files are bytes."""
    for name in (b"\x1b[2J.yaml", b"\xff.yaml"):
        file = tmp_path / os.fsdecode(name)
        file.write_text("policy: web\ningress: []\n")
        (policy,) = document.read([file]).policies
        assert policy.file.isprintable()
        assert msgspec.json.decode(msgspec.json.encode(policy), type=Policy) == policy


def test_of_a_file_that_is_too_long_no_more_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device may have no end."""
    monkeypatch.setattr(document, "LARGEST", 10)
    monkeypatch.setattr(yaml_nodes, "LARGEST", 10)
    with pytest.raises(Invalid, match="zero has more than"):
        document.read([Path("/dev/zero")])


CASE = "- {from: a, to: b, expect: deny}\n"


def test_a_file_has_so_many_tests_and_documents_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each takes a millisecond or so: a hundred thousand would take a minute."""
    for module in (document, yaml_nodes):
        monkeypatch.setattr(module, "MOST", 3)
    assert len(document.parsed("tests:\n" + 3 * CASE, "f").cases) == 3
    with pytest.raises(Invalid, match="f line 2 has 4 tests, and may have 3"):
        document.parsed("tests:\n" + 4 * CASE, "f")
    with pytest.raises(Invalid, match="f line 6 begins more tests, and a file may have 3"):
        document.parsed("tests:\n" + 3 * CASE + "---\ntests:\n" + CASE, "f")
    assert document.parsed(3 * "---\n", "f").cases == ()
    with pytest.raises(Invalid, match="f line 4 begins one of more than 3 documents"):
        document.parsed(4 * "---\n", "f")


@given(samples.policies("p"))
def test_a_printed_policy_is_read_as_the_same(policy: Policy) -> None:
    """The policy may say anything; only the lines differ."""
    (found,) = document.parsed(document.printed(policy), "").policies
    assert _bare(found) == _bare(policy)


def _bare(policy: Policy) -> Policy:
    return msgspec.structs.replace(
        policy,
        line=0,
        ingress=_without_lines(policy.ingress),
        egress=_without_lines(policy.egress),
    )


def _without_lines(rules: tuple[Rule, ...] | None) -> tuple[Rule, ...] | None:
    return None if rules is None else tuple(msgspec.structs.replace(rule, line=0) for rule in rules)
