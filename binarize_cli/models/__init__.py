"""Model name -> float model, its preprocessing, its classes.

    names    what the user typed -> which model of which library; imports nothing heavy
    library_names    the names that the libraries know, by regular expressions over their source text
    hub      where pretrained weights lie: the cache, or a hub that answers; light too, so it fails early
    build    architecture with random weights, all that a packed file needs to be rebuilt
    saved    a folder or repository of config.json and weights, as timm saves a model
    weights  a file of weights -> a state dict of plain tensors, or one message that says what is wrong
    fit      a state dict -> the network: old spellings, other image sizes, or one message with all misfits
    load     the float model: network, preprocessing, labels, and where its weights came from
    heads    the classifier layers of any network, and their rows
    classes  the dataset's classes against the model's labels
    cifar_resnet, digits    our own models, registered with timm

Import the modules themselves: this package imports none of them, so that `names` and `hub` stay light.
"""
