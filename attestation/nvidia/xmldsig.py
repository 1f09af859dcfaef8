"""One shape of XML signature: enveloped, over the whole document, C14N 1.1, ECDSA P-384 with SHA-384.

Only what NVIDIA's reference manifests use is implemented; everything else is refused. What a caller reads is the very
tree whose canonical form was verified, so nothing can be wrapped around or slipped beside it.
Sources: W3C xmldsig-core1, xml-c14n11.
"""

import base64
import binascii
import hashlib
import hmac
import xml.parsers.expat
from collections.abc import Iterator, Mapping
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384

from attestation.certificates import Chain, load_der_chain
from attestation.findings import Code, RefusedError
from cocoon.errors import MalformedError

XML_BYTES_MAX: Final = 1024 * 1024
DEPTH_MAX: Final = 16
NODES_MAX: Final = 20_000
DSIG: Final = "http://www.w3.org/2000/09/xmldsig#"
C14N11: Final = "http://www.w3.org/2006/12/xml-c14n11"
ECDSA_SHA384: Final = "http://www.w3.org/2001/04/xmldsig-more#ecdsa-sha384"
SHA384_DIGEST: Final = "http://www.w3.org/2001/04/xmldsig-more#sha384"
ENVELOPED: Final = "http://www.w3.org/2000/09/xmldsig#enveloped-signature"
_SIGNATURE_BYTES: Final = 96
_XML_PREFIX: Final = "xml"


class Element:
    """An element with the namespace scope it stands in; children are elements and texts in document order."""

    __slots__ = ("attributes", "children", "declared", "name", "scope")

    def __init__(self, name: str, attributes: Mapping[str, str], parent: "Element | None") -> None:
        self.name = name
        self.declared = {
            key[6:] if key != "xmlns" else "": value
            for key, value in attributes.items()
            if key == "xmlns" or key.startswith("xmlns:")
        }
        self.attributes = {key: value for key, value in attributes.items() if key.partition(":")[0] != "xmlns"}
        self.scope: dict[str, str] = {**(parent.scope if parent else {}), **self.declared}
        self.children: list[Element | str] = []

    @property
    def tag(self) -> tuple[str, str]:
        """Namespace and local name."""
        prefix, _, local = self.name.rpartition(":")
        return self.namespace(prefix), local

    def namespace(self, prefix: str) -> str:
        """What a prefix stands for here.

        Raises:
            MalformedError: it is not declared, or it is `xml`, whose inheritance we do not implement.
        """
        if prefix == _XML_PREFIX or (prefix and not self.scope.get(prefix)):
            raise MalformedError("an XML name has a prefix that is not usable here")
        return self.scope.get(prefix, "")

    def expanded(self) -> dict[tuple[str, str], str]:
        """Attributes by namespace and local name.

        Raises:
            MalformedError: two of them are the same.
        """
        found: dict[tuple[str, str], str] = {}
        for name, value in self.attributes.items():
            prefix, _, local = name.rpartition(":")
            found[self.namespace(prefix) if prefix else "", local] = value
        if len(found) != len(self.attributes):
            raise MalformedError("an XML attribute is given twice")
        return found

    def elements(self, tag: tuple[str, str] | None = None) -> list["Element"]:
        """The element children, all or of one tag."""
        return [child for child in self.children if isinstance(child, Element) and tag in (None, child.tag)]

    def only(self, tag: tuple[str, str]) -> "Element":
        """The one child of this tag.

        Raises:
            MalformedError: none or several.
        """
        found = self.elements(tag)
        if len(found) != 1:
            raise MalformedError(f"an XML document has {len(found)} elements {tag[1]} where there is one")
        return found[0]

    def text(self) -> str:
        """The text of an element without element children.

        Raises:
            MalformedError: it has some.
        """
        if self.elements():
            raise MalformedError("an XML element has children where there is text")
        return "".join(child for child in self.children if isinstance(child, str))


def parse_xml(raw: bytes) -> Element:
    """The root element.

    Raises:
        MalformedError: not well-formed, too large, or with a document type, entities or processing instructions.
    """
    if len(raw) > XML_BYTES_MAX:
        raise MalformedError("the XML document is too long")
    builder = _Builder()
    parser = xml.parsers.expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.text
    parser.StartDoctypeDeclHandler = builder.refuse
    parser.ProcessingInstructionHandler = builder.refuse
    parser.CommentHandler = builder.refuse
    try:
        parser.Parse(raw, True)
    except (xml.parsers.expat.ExpatError, ValueError, LookupError) as error:
        raise MalformedError("not a well-formed XML document") from error
    if builder.root is None:
        raise MalformedError("the XML document is empty")
    return builder.root


class _Builder:
    def __init__(self) -> None:
        self.root: Element | None = None
        self._open: list[Element] = []
        self._nodes = 0

    def start(self, name: str, attributes: dict[str, str]) -> None:
        self._nodes += 1
        if len(self._open) >= DEPTH_MAX or self._nodes > NODES_MAX:
            raise MalformedError("the XML document is too deep or too large")
        parent = self._open[-1] if self._open else None
        element = Element(name, attributes, parent)
        if parent is None:
            self.root = element
        else:
            parent.children.append(element)
        self._open.append(element)

    def end(self, _name: str) -> None:
        self._open.pop()

    def text(self, data: str) -> None:
        if self._open:
            self._open[-1].children.append(data)

    def refuse(self, *_: object) -> None:
        raise MalformedError("the XML document has a part that no manifest has")


def canonical_xml(root: Element, *, without: Element | None = None) -> bytes:
    """C14N 1.1 of an element and what is below it, leaving one element out."""
    return "".join(_canonical(root, {}, without)).encode()


def _canonical(element: Element, rendered: Mapping[str, str], without: Element | None) -> Iterator[str]:
    # What the output's ancestors declared already is not repeated; at the apex that is nothing.
    news = {prefix: uri for prefix, uri in element.scope.items() if rendered.get(prefix, "") != uri}
    yield f"<{element.name}"
    for prefix in sorted(news):
        yield f' xmlns{":" if prefix else ""}{prefix}="{_attribute(news[prefix])}"'
    # Names that stand for nothing, or attributes that are one, have no canonical form.
    _ = element.tag, element.expanded()
    for name in sorted(element.attributes, key=lambda name: _attribute_order(element, name)):
        yield f' {name}="{_attribute(element.attributes[name])}"'
    yield ">"
    inside = {**rendered, **news}
    for child in element.children:
        if isinstance(child, str):
            yield child.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("\r", "&#xD;")
        elif child is not without:
            yield from _canonical(child, inside, without)
    yield f"</{element.name}>"


def _attribute_order(element: Element, name: str) -> tuple[str, str]:
    prefix, _, local = name.rpartition(":")
    return (element.namespace(prefix) if prefix else "", local)


def _attribute(value: str) -> str:
    escaped = value.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    return escaped.replace("\t", "&#x9;").replace("\n", "&#xA;").replace("\r", "&#xD;")


def embedded_chain(root: Element) -> Chain:
    """The signer's certificates as the document carries them, unverified.

    Raises:
        MalformedError: there are none, or they cannot be read.
    """
    data = root.only((DSIG, "Signature")).only((DSIG, "KeyInfo")).only((DSIG, "X509Data"))
    return load_der_chain([_base64(element) for element in data.elements((DSIG, "X509Certificate"))], "the manifest")


def check_enveloped_signature(root: Element, signer: Chain) -> None:
    """Check that the key of `signer`'s leaf signed the whole document but the signature itself.

    Raises:
        MalformedError: a signature of another shape.
        RefusedError: it does not verify.
    """
    signature = root.only((DSIG, "Signature"))
    info = signature.only((DSIG, "SignedInfo"))
    _check_shape(info)
    reference = info.only((DSIG, "Reference"))
    digest = hashlib.sha384(canonical_xml(root, without=signature)).digest()
    if not hmac.compare_digest(digest, _base64(reference.only((DSIG, "DigestValue")))):
        raise RefusedError(Code.RIM_INVALID, "a reference manifest has been altered after it was signed")
    value = _base64(signature.only((DSIG, "SignatureValue")))
    key = signer[0].public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or len(value) != _SIGNATURE_BYTES:
        raise RefusedError(Code.RIM_INVALID, "a reference manifest is not signed with ECDSA P-384")
    half = _SIGNATURE_BYTES // 2
    der = encode_dss_signature(int.from_bytes(value[:half], "big"), int.from_bytes(value[half:], "big"))
    try:
        key.verify(der, canonical_xml(info), ec.ECDSA(SHA384()))
    except (InvalidSignature, ValueError, UnsupportedAlgorithm) as error:
        raise RefusedError(Code.RIM_INVALID, "the signature of a reference manifest does not verify") from error


def _check_shape(info: Element) -> None:
    reference = info.only((DSIG, "Reference"))
    transforms = reference.only((DSIG, "Transforms")).elements()
    algorithms = [
        info.only((DSIG, "CanonicalizationMethod")),
        info.only((DSIG, "SignatureMethod")),
        *transforms,
        reference.only((DSIG, "DigestMethod")),
    ]
    used = [element.attributes for element in algorithms]
    expected = [{"Algorithm": name} for name in (C14N11, ECDSA_SHA384, ENVELOPED, C14N11, SHA384_DIGEST)]
    if used != expected or reference.attributes != {"URI": ""} or any(element.elements() for element in algorithms):
        raise MalformedError("the XML signature is not of the shape that manifests have")


def _base64(element: Element) -> bytes:
    try:
        return base64.b64decode("".join(element.text().split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise MalformedError("an XML element is not base64") from error
