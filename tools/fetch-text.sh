#!/bin/sh
# Writes an English text to train small models on: the six novels of Jane Austen (public domain; first published
# 1811 to 1817), about 4 MB of prose.
#
#   tools/fetch-text.sh [OUTPUT]        OUTPUT defaults to runs/text.txt
#
# The text comes out of Debian's package r-cran-janeaustenr (1.6 MB; the package itself is under the MIT licence). The
# package is unpacked in a temporary folder, not installed, so R is not needed. Needs: apt-get, dpkg-deb, perl.
# Each paragraph is put on one line, with an empty line between paragraphs.
set -eu

output=${1:-runs/text.txt}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
chmod 755 "$scratch"

(cd "$scratch" && apt-get download -q r-cran-janeaustenr >log 2>&1) || {
    cat "$scratch/log" >&2
    echo "fetch-text.sh: apt-get could not download r-cran-janeaustenr; run 'apt-get update' and try again" >&2
    exit 1
}
dpkg-deb -x "$scratch"/r-cran-janeaustenr_*.deb "$scratch/package"
mkdir -p "$(dirname "$output")"

# R's lazy-load file is a row of blocks: four bytes of uncompressed size, then a zlib stream. A block is an object in R's
# binary format (XDR): a list of strings, each 00 04 00 09, a four-byte length and the bytes.
perl -MCompress::Raw::Zlib -e '
    use strict;
    use warnings;
    local $/;
    open my $in, "<:raw", $ARGV[0] or die "$ARGV[0]: $!\n";
    my $rest = <$in>;
    my $novels = 0;
    while (length($rest) > 4) {
        substr($rest, 0, 4) = "";
        my ($stream) = Compress::Raw::Zlib::Inflate->new();
        my $block = "";
        $stream->inflate($rest, $block) == Z_STREAM_END or die "a block does not decompress\n";
        my $at = index($block, "\x00\x00\x00\x10");
        next if $at < 0 || $at > 64;
        my $count = unpack("N", substr($block, $at + 4, 4));
        next if $count < 1000;
        $at += 8;
        my @paragraph;
        for (1 .. $count) {
            my $length = unpack("N", substr($block, $at + 4, 4));
            my $line = substr($block, $at + 8, $length);
            $at += 8 + $length;
            $line =~ s/^\s+|\s+$//g;
            if (length $line) { push @paragraph, $line; next }
            print join(" ", @paragraph), "\n\n" if @paragraph;
            @paragraph = ();
        }
        print join(" ", @paragraph), "\n\n" if @paragraph;
        $novels++;
    }
    $novels == 6 or die "expected 6 novels, found $novels\n";
' "$scratch/package/usr/lib/R/site-library/janeaustenr/data/Rdata.rdb" >"$scratch/text"
mv "$scratch/text" "$output"
echo "$output: $(wc -c <"$output") bytes"
