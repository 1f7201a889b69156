"""Everything that does not know what an example is: no text, images, sound or items.

Directly here is the contract and what every task needs: `errors`, `config`, `task`, `losses`,
`evaluate`, `tree`, `cli`. The rooms beside it have one subject each; common/README.md lists them
and the order of their imports.
"""
