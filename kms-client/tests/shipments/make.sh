#!/usr/bin/env bash
# Makes the files of this directory anew, with other programs than ours: openssl, xmlsec1, xmllint, zip. The tests
# read what is committed; who runs this gets other keys and the same tests.
set -euo pipefail
cd "$(dirname "$0")"
t=$(mktemp -d); trap 'rm -rf "$t"' EXIT

# Whose signatures count: an authority, whom it vouches for, and a stranger who calls himself the same.
ca() { openssl req -x509 -newkey rsa:2048 -nodes -keyout "$t/$1.key" -out "$1.pem" -days 20000 -sha256 \
    -subj "/CN=Maker's authority" -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign 2>/dev/null; }
leaf() { # name, authority, days
    openssl req -newkey rsa:2048 -nodes -keyout "$t/$1.key" -out "$t/$1.csr" -subj "/CN=Shipments" 2>/dev/null
    printf 'basicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature\n' > "$t/ext"
    openssl x509 -req -in "$t/$1.csr" -CA "$2.pem" -CAkey "$t/$2.key" -CAcreateserial -CAserial "$t/serial" \
        -out "$t/$1.pem" -days "$3" -sha256 -extfile "$t/ext" 2>/dev/null; }
ca anchor; ca stranger
leaf signer anchor 19000; leaf thief stranger 19000
openssl ecparam -name prime256v1 -genkey -noout | openssl pkcs8 -topk8 -nocrypt -out "$t/ec.key"
openssl pkey -in "$t/ec.key" -pubout -out ec-signer.pem
openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out unwrap.key 2>/dev/null
openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out rsa-1-5.key 2>/dev/null

wrap_key=$(printf 'C1%.0s' {1..16})$(printf 'A7%.0s' {1..16})
hex() { printf %s "$1" | tr -d ' ' | fold -w2 | sed 's/^/\\x/' | tr -d '\n' | xargs -0 printf %b; }
to_oaep() { hex "$wrap_key" | openssl pkeyutl -encrypt -inkey unwrap.key -pkeyopt rsa_padding_mode:oaep "$@" | base64 -w64; }
to_rsa15() { hex "$wrap_key" | openssl pkeyutl -encrypt -inkey rsa-1-5.key -pkeyopt rsa_padding_mode:pkcs1 | base64 -w0; }
kw() { hex "$1" | openssl enc -e -id-aes256-wrap -K "$wrap_key" -iv A6A6A6A6A6A6A6A6 | base64 -w0; }
cbc() { local iv; iv=$(openssl rand -hex 16); { hex "$iv"; hex "$1" | openssl enc -e -aes-256-cbc -K "$wrap_key" -iv "$iv"; } | base64 -w0; }
key() { printf '%s' "$1" | openssl dgst -sha256 -r | cut -c1-32; }

signature() { # canonical form, algorithm, what stands in KeyInfo
    cat <<X
<ds:Signature xmlns:ds="http://www.w3.org/2000/09/xmldsig#"><ds:SignedInfo>
<ds:CanonicalizationMethod Algorithm="$1"/><ds:SignatureMethod Algorithm="http://www.w3.org/2001/04/xmldsig-more#$2"/>
<ds:Reference URI=""><ds:Transforms><ds:Transform Algorithm="http://www.w3.org/2000/09/xmldsig#enveloped-signature"/>
<ds:Transform Algorithm="$1"/></ds:Transforms><ds:DigestMethod Algorithm="http://www.w3.org/2001/04/xmlenc#sha256"/>
<ds:DigestValue/></ds:Reference></ds:SignedInfo><ds:SignatureValue/>$3</ds:Signature>
X
}
device() { # number, namespace prefix, method, how
    local p=$2
    cat <<X
    <${p}Device xml:space='preserve' b="2"   a="1&#10;x">
      <${p}SerialNumber>SN-$1</${p}SerialNumber><!-- a comment is not signed -->
      <${p}MAC>4D4D4D000000000$1</${p}MAC>
      <${p}Attribute name="Note">a &lt; b &amp; <![CDATA[c > d]]></${p}Attribute><?note it is signed?>
X
    for name in GUEK_MC GAK_MC MK PSK; do
        printf '      <%sKey name="%s" WrapKeyLabel="W1">%s<xenc:CipherData xmlns:xenc="http://www.w3.org/2001/04/xmlenc#"><xenc:CipherValue>%s</xenc:CipherValue></xenc:CipherData></%sKey>\n' \
            "$p" $name "$3" "$($4 "$(key "$name $1")")" "$p"
    done
    printf '    </%sDevice>\n' "$p"
}
sign() { # from, key, to
    xmlsec1 --sign --privkey-pem "$2" --output "$3" "$1"; }

exc='http://www.w3.org/2001/10/xml-exc-c14n#'; inc='http://www.w3.org/TR/2001/REC-xml-c14n-20010315'
method='<xenc:EncryptionMethod xmlns:xenc="http://www.w3.org/2001/04/xmlenc#" Algorithm="http://www.w3.org/2001/04/xmlenc#kw-aes256"/>'
shipment() { # canonical form, algorithm, KeyInfo, wrap key's part, method, how
    cat <<X
<?xml version="1.0" encoding="UTF-8"?>
<s:Shipment xmlns:s="http://example.com/shipment" xmlns:unused="urn:unused" xmlns="urn:default">
  <s:Header><s:Manufacturer>MMM &amp; Söhne</s:Manufacturer><s:BatchID>B-17</s:BatchID>
    <s:WrapKey Label="W1"><s:SymmetricKey>$4</s:SymmetricKey></s:WrapKey>
  </s:Header>
  <s:Body>
X
    for n in 1 2 3; do device $n s: "$5" "$6"; done
    printf '  </s:Body>\n%s</s:Shipment>\n' "$(signature "$1" "$2" "$3")"
}
oaep_part='<xenc:EncryptionMethod xmlns:xenc="http://www.w3.org/2001/04/xmlenc#" Algorithm="http://www.w3.org/2001/04/xmlenc#rsa-oaep-mgf1p"/><xenc:CipherData xmlns:xenc="http://www.w3.org/2001/04/xmlenc#"><xenc:CipherValue>
'"$(to_oaep)"'</xenc:CipherValue></xenc:CipherData>'
oaep256_part='<x:EncryptedKey xmlns:x="http://www.w3.org/2001/04/xmlenc#"><x:EncryptionMethod Algorithm="http://www.w3.org/2009/xmlenc11#rsa-oaep"><d:DigestMethod xmlns:d="http://www.w3.org/2000/09/xmldsig#" Algorithm="http://www.w3.org/2001/04/xmlenc#sha256"/><e:MGF xmlns:e="http://www.w3.org/2009/xmlenc11#" Algorithm="http://www.w3.org/2009/xmlenc11#mgf1sha256"/></x:EncryptionMethod><x:CipherData><x:CipherValue>'"$(to_oaep -pkeyopt rsa_oaep_md:sha256 -pkeyopt rsa_mgf1_md:sha256)"'</x:CipherValue></x:CipherData></x:EncryptedKey>'
rsa15_part='<xenc:CipherData xmlns:xenc="http://www.w3.org/2001/04/xmlenc#"><xenc:CipherValue>'"$(to_rsa15)"'</xenc:CipherValue></xenc:CipherData>'
x509='<ds:KeyInfo><ds:X509Data/></ds:KeyInfo>'; own='<ds:KeyInfo><ds:KeyValue/></ds:KeyInfo>'

shipment "$exc" rsa-sha256 "$x509" "$oaep_part" "$method" kw > "$t/a"
sign "$t/a" "$t/signer.key,$t/signer.pem" exclusive.xml
sign "$t/a" "$t/thief.key,$t/thief.pem" stranger.xml
shipment "$inc" rsa-sha256 "$x509" "$oaep256_part" "$method" kw > "$t/a"
sign "$t/a" "$t/signer.key,$t/signer.pem" inclusive.xml
shipment "$inc" ecdsa-sha256 "" "$rsa15_part" "" cbc > "$t/a"
sign "$t/a" "$t/ec.key" rsa-1-5.xml
shipment "$exc" rsa-sha256 "$own" "$oaep_part" "$method" kw > "$t/a"
openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out "$t/other.key" 2>/dev/null
sign "$t/a" "$t/other.key" own-key.xml

# Kamstrup's: the password is key and initial value.
password=customer-4711; pw=$(printf %s "$password" | xxd -p | tr -d '\n'); pw=$(printf '%-32s' "$pw" | tr ' ' 0)
kem() { # plain text's file, to
    local data; data=$(openssl enc -e -aes-128-cbc -K "$pw" -iv "$pw" -in "$1" | base64 -w0)
    printf '<?xml version="1.0" encoding="utf-8"?>\n<EncryptedData Type="http://www.w3.org/2001/04/xmlenc#Element" xmlns="http://www.w3.org/2001/04/xmlenc#"><EncryptionMethod Algorithm="http://www.w3.org/2001/04/xmlenc#aes128-cbc" /><CipherData><CipherValue>%s</CipherValue></CipherData></EncryptedData>' "$data" > "$2"; }
{ printf '<MetersInOrder orderid="1">'
  for n in 1 2; do printf '<Meter><MeterName>MC</MeterName><MeterNo>%s</MeterNo><SerialNo>6800000%s</SerialNo><DEK>%s</DEK></Meter>' $n $n "$(key "DEK $n")"; done
  printf '</MetersInOrder>'; } > "$t/k1"; kem "$t/k1" meters.kem
{ printf '<?xml version="1.0"?><Devices>'
  for n in 1 2; do printf '<Device><SerialNumber>3600000%s</SerialNumber><SystemTitle>4B414D450100000%s</SystemTitle><Keys><Key><Name>GPK60</Name><Value>%s</Value></Key><Key><Name>GPK61</Name><Value>%s</Value></Key><Key><Name>KEK</Name><Value>%s</Value></Key></Keys></Device>' $n $n "$(key "GPK60 $n")" "$(key "GPK61 $n")" "$(key "KEK $n")"; done
  printf '</Devices>'; } > "$t/k2"; kem "$t/k2" "$t/devices.kem2"
rm -f devices.zip; (cd "$t" && zip -q devices.zip devices.kem2); cp "$t/devices.zip" "$t/devices.kem2" .

# Canonical forms.
for way in c14n exc-c14n; do xmllint --$way canonical.xml > "$t/with-comments"
    # xmllint keeps comments, which are not signed.
    python3 -c 'import re,sys; sys.stdout.write(re.sub(r"<!--.*?-->", "", open(sys.argv[1]).read(), flags=re.S))' "$t/with-comments" > "canonical.$way"; done
